"""A Rerun recording of a run; `rerun run.rrd` shows it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.episode_runner import EpisodeRunner
from ebt_policy.real_robot.loop import Tick


class RerunLog:
    """A log of commands, positions, energy, lateness, cameras and states; an observer of ticks.

    Args:
        path: path of the recording, which ends in .rrd.

    Raises:
        ConfigError: rerun-sdk is not installed, or the file exists or cannot be created.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._rerun: Any = importlib.import_module("rerun")
        except ModuleNotFoundError as error:
            raise ConfigError("rerun= needs rerun-sdk: pip install 'ebt_policy[rerun]'.") from error
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
        except FileExistsError as error:
            raise ConfigError(f"rerun={path} exists; give another file name.") from error
        except OSError as error:
            raise ConfigError(f"rerun={path} cannot be written ({error.strerror}).") from error
        self._stream = self._rerun.RecordingStream("ebt_policy")
        self._stream.save(str(path))
        self.runner: EpisodeRunner | None = None
        self._path, self._state = path, ""

    def __call__(self, tick: Tick) -> None:
        runner, stream, scalars = self.runner, self._stream, self._rerun.Scalars
        if runner is None:
            return
        stream.set_time("time", duration=tick.due)
        position = None if tick.observation is None else tick.observation.position
        series = {"desired": tick.desired, "command": tick.command, "position": position}
        for name, values in series.items():
            if values is not None:
                for number, value in zip(runner.robot.action, values, strict=True):
                    stream.log(f"{name}/{number}", scalars([float(value)]))
        stream.log("late_ms", scalars([1e3 * tick.late]))
        plan = runner.source.plan
        if plan is not None and plan.start == tick.number:
            stream.log("chunk_ms", scalars([1e3 * plan.seconds]))
            for name in ("energy", "inconsistency"):
                if (value := getattr(plan, name)) is not None:
                    stream.log(name, scalars([value]))
        if tick.observation is not None:
            for name, value in tick.observation.values.items():
                if value.ndim == 3:
                    stream.log(f"camera/{name}", self._rerun.Image(value))
        if str(tick.state) != self._state:
            self._state = str(tick.state)
            reason = f"{tick.state}: {runner.supervisor.reason}"
            stream.log("state", self._rerun.TextLog(reason))

    def close(self) -> None:
        """Write the rest of the recording, and delete it if it has no ticks."""
        self._stream.flush(timeout_sec=10.0)
        self._stream.disconnect()
        if not self._state:
            self._path.unlink(missing_ok=True)
