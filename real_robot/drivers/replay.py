"""A recorded run as a robot: it shows what was seen then, and only pretends to be moved."""

from __future__ import annotations

import numpy as np

from ebt_policy.data.episode_store import read_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver, DriverError, Observation

ADDED = (
    "position", "wanted", "action", "clamped", "sent", "mode", "tick", "time", "late", "age",
    "latency", "energy", "surprise", "steps",
)  # fmt: skip


class Recording:
    """One recorded episode.

    Args:
        store: what `Recorder` wrote.
        episode: which; negative counts from the end.

    Raises:
        ConfigError: no such episode, or a store that no recorder wrote.
        EpisodeError: a store that cannot be read.
    """

    def __init__(self, store: str, episode: int = -1) -> None:
        episodes: Episodes = read_episodes(store)
        if missing := [name for name in ("obs", "position", "time") if name not in episodes.arrays]:
            raise ConfigError(f"{store} has no {missing[0]}: it was not recorded from a robot.")
        if not -len(episodes) <= episode < len(episodes):
            raise ConfigError(f"{store} has {len(episodes)} episodes, not one number {episode}.")
        self.rows = episodes.episode(episode)
        self.values = [name for name in self.rows if name not in ADDED]
        self.times = self.rows["time"] - self.rows["time"][0]

    def __len__(self) -> int:
        return len(self.times)


class ReplayDriver(Driver):
    """Shows the observations of a recording at their times; then the last one stays."""

    def __init__(self, recording: Recording, clock: Clock) -> None:
        self._recording, self._clock = recording, clock
        self.seconds = float(recording.times[-1])
        self._start: float | None = None

    def connect(self) -> None:
        self._start = self._clock.now()

    def reset(self, seed: int) -> None:
        self._start = self._clock.now()

    def read(self) -> Observation:
        if self._start is None:
            raise DriverError("the recording is not being played.")
        now = self._clock.now()
        since = now - self._start + 1e-6
        row = max(int(np.searchsorted(self._recording.times, since, side="right")) - 1, 0)
        rows = self._recording.rows
        stamp = self._start + self._recording.times[row] - rows["age"][row]
        if row == len(self._recording) - 1:
            stamp = now  # it stands still there
        values = {name: rows[name][row] for name in self._recording.values}
        return Observation(values, rows["position"][row], stamp)

    def send(self, command: np.ndarray, due: float) -> None:
        if self._start is None:
            raise DriverError("the recording is not being played.")

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self._start = None
