"""A recorded episode in place of a robot: commands have no effect on the observations."""

from __future__ import annotations

from typing import Any

import numpy as np

from ebt_policy.config import options
from ebt_policy.data.episode_store import read_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import ROBOT_DRIVERS, Driver, DriverContext, Observation
from ebt_policy.real_robot.errors import DriverError
from ebt_policy.real_robot.recording_layout import ADDED_COLUMNS


class Recording:
    """One recorded episode.

    Args:
        store: path of an episode store that `Recorder` wrote.
        episode: index of the episode; a negative index counts from the end.

    Raises:
        ConfigError: there is no such episode, or the store is not a recording.
        EpisodeError: the store cannot be read.
    """

    def __init__(self, store: str, episode: int = -1) -> None:
        episodes: Episodes = read_episodes(store)
        if missing := [name for name in ("obs", "position", "time") if name not in episodes.arrays]:
            raise ConfigError(f"{store} has no {missing[0]}: it is not a recording of a robot.")
        if not -len(episodes) <= episode < len(episodes):
            raise ConfigError(
                f"{store} has {len(episodes)} episodes; there is no episode {episode}."
            )
        self.rows = episodes.episode(episode)
        self.values = [name for name in self.rows if name not in ADDED_COLUMNS]
        self.times = self.rows["time"] - self.rows["time"][0]

    def __len__(self) -> int:
        return len(self.times)


@ROBOT_DRIVERS.register("replay")
class ReplayDriver(Driver):
    """A driver that replays recorded observations at their times; the last one then stays."""

    def __init__(self, recording: Recording, clock: Clock) -> None:
        self._recording, self._clock = recording, clock
        self.seconds = float(recording.times[-1])
        self._start: float | None = None

    @classmethod
    def from_config(cls, section: dict[str, Any], context: DriverContext) -> ReplayDriver:
        return cls(options(Recording, section, "robot.driver"), context.clock)

    def connect(self) -> None:
        self._start = self._clock.now()

    def reset(self, seed: int) -> None:
        self._start = self._clock.now()

    def read(self) -> Observation:
        if self._start is None:
            raise DriverError("the recording is not being played.")
        now = self._clock.now()
        elapsed = now - self._start + 1e-6
        row = max(int(np.searchsorted(self._recording.times, elapsed, side="right")) - 1, 0)
        rows = self._recording.rows
        stamp = self._start + self._recording.times[row] - rows["age"][row]
        if row == len(self._recording) - 1:
            stamp = now  # The last observation stays valid, as of a robot that does not move.
        values = {name: rows[name][row] for name in self._recording.values}
        return Observation(values, rows["position"][row], stamp)

    def send(self, command: np.ndarray, due: float) -> None:
        if self._start is None:
            raise DriverError("the recording is not being played.")

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self._start = None
