"""A log of a run for Rerun: a file, or a stream to a viewer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.action_source import Plan
from ebt_policy.real_robot.episode_runner import EpisodeRunner
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.rerun_viewer import RerunViewer, is_address, new_recording


class RerunLog:
    """A log of commands, chunks, observations, energy, lateness, cameras and states.

    It is an observer of ticks. Chunks are logged at the times of their actions, so that the view
    compares them with the commands.

    Args:
        target: a file that ends in .rrd, or a viewer (see `RerunViewer`).

    Attributes:
        page: address of the live view to open in a browser; "" if there is none.

    Raises:
        ConfigError: rerun-sdk is not installed, the file exists or cannot be created, or there is
            no viewer.
    """

    def __init__(self, target: str) -> None:
        try:
            self._rerun: Any = importlib.import_module("rerun")
        except ModuleNotFoundError as error:
            raise ConfigError("rerun= needs rerun-sdk: pip install 'ebt_policy[rerun]'.") from error
        self._viewer: RerunViewer | None = None
        self._file: Path | None = None
        self._stream = self._rerun.RecordingStream("ebt_policy")
        if is_address(target):
            self._viewer = RerunViewer(target)
            try:
                self._stream.connect_grpc(self._viewer.url)
            except BaseException:
                self._viewer.close()
                raise
        else:
            self._file = new_recording(Path(target))
            self._stream.save(str(self._file))
        self.page = "" if self._viewer is None else self._viewer.page
        self.runner: EpisodeRunner | None = None
        self._state = ""

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
            for name in ("energy", "inconsistency", "cost"):
                if (value := getattr(plan, name)) is not None:
                    stream.log(name, scalars([value]))
            self._log_chunk(plan, tick, runner)
        if tick.observation is not None:
            for name, value in tick.observation.values.items():
                if value.ndim == 3:
                    stream.log(f"camera/{name}", self._rerun.Image(value))
                elif value.ndim == 1:
                    stream.log(f"observation/{name}", scalars(value.astype(np.float64)))
        if str(tick.state) != self._state:
            self._state = str(tick.state)
            reason = f"{tick.state}: {runner.supervisor.reason}"
            stream.log("state", self._rerun.TextLog(reason))

    def _log_chunk(self, plan: Plan, tick: Tick, runner: EpisodeRunner) -> None:
        """Log the actions of a plan from its first executed tick, each at its time."""
        actions = np.asarray(plan.actions[plan.start - plan.first :], dtype=np.float64)
        times = tick.due + runner.source.dt * np.arange(len(actions))
        index = self._rerun.TimeColumn("time", duration=times)
        for name, values in zip(runner.robot.action, actions.T, strict=True):
            columns = self._rerun.Scalars.columns(scalars=values)
            self._stream.send_columns(f"chunk/{name}", [index], columns)

    def close(self) -> None:
        """Write or send the rest, and delete a file without ticks."""
        try:
            self._stream.flush(timeout_sec=10.0)
        finally:
            self._stream.disconnect()
            if self._viewer is not None:
                self._viewer.close()
        if self._file is not None and not self._state:
            self._file.unlink(missing_ok=True)
