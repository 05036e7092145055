"""The options of a run; see ``configs/run.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.renamed_options import RENAMED_VALUES


class RunMode(StrEnum):
    """The values of ``mode``.

    RUN: a policy moves the robot.
    SHADOW: as RUN, but no command is sent.
    DRY_RUN: the robot is checked and the policy warmed up; the robot does not move.
    REPLAY: recorded actions move the robot.
    TELEOP: a person moves the robot.
    """

    RUN = "run"
    SHADOW = "shadow"
    DRY_RUN = "dry_run"
    REPLAY = "replay"
    TELEOP = "teleop"


class KeepRule(StrEnum):
    """The values of ``keep``: which episodes count for ``episodes`` and stay recorded.

    COMPLETED: episodes that did not end with the robot held or stopped.
    SUCCESSFUL: completed episodes in which a simulated robot solved its task.
    ALL: all episodes.
    """

    COMPLETED = "completed"
    SUCCESSFUL = "successful"
    ALL = "all"


REQUIRED_OPTIONS = {
    RunMode.RUN: "checkpoint",
    RunMode.SHADOW: "checkpoint",
    RunMode.DRY_RUN: "checkpoint",
    RunMode.REPLAY: "recording",
}


@dataclass(frozen=True)
class RunOptions:
    """The options of a run; ``configs/run.yaml`` explains each.

    Raises:
        ConfigError: an option is missing or invalid.
    """

    checkpoint: str | None = None
    policy: str | None = None
    mode: str = RunMode.RUN.value
    recording: str | None = None
    recorded_episode: int = -1
    input: str | dict[str, Any] = "mouse"
    takeover: bool = False
    episodes: int = 1
    keep: str = KeepRule.COMPLETED.value
    seed: int = EVALUATION_SEED
    speed: float = 1.0
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    compile: bool = False
    record: str | None = None
    lerobot: str | None = None
    rerun: str | None = None
    live: bool = True
    video: bool = False
    device: str = "auto"
    output: str | None = None

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, RunMode)
        _check_choice("keep", self.keep, KeepRule)
        required = REQUIRED_OPTIONS.get(RunMode(self.mode))
        if required == "checkpoint" and self.policy is not None:
            self._check_server_options()
        elif required is not None and getattr(self, required) is None:
            raise ConfigError(f"missing required option {required}=... for mode={self.mode}.")
        if self.takeover and self.mode != RunMode.RUN:
            raise ConfigError(f"takeover=true needs mode=run, got mode={self.mode}.")
        if self.lerobot is not None and self.record is None:
            raise ConfigError(f"lerobot={self.lerobot} also needs record=STORE.")
        if self.episodes < 1:
            raise ConfigError(f"episodes must be at least 1, got {self.episodes}.")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}.")

    def _check_server_options(self) -> None:
        if self.checkpoint is not None:
            raise ConfigError("checkpoint= and policy= exclude each other; leave one out.")
        if self.compile:
            raise ConfigError("compile=true needs checkpoint=; compile the policy on the server.")

    @property
    def source_name(self) -> str:
        """The base name of the checkpoint or recording, or the teleoperation device."""
        device = self.input if isinstance(self.input, str) else self.input.get("name")
        sources = {RunMode.REPLAY: self.recording, RunMode.TELEOP: device}
        if (source := sources.get(RunMode(self.mode))) is not None:
            return Path(str(source)).resolve().name
        if self.policy is not None:
            return "server"
        from ebt_policy.evaluation.results_folder import folder_name  # slow to import

        return folder_name(str(self.checkpoint))


def _check_choice(option: str, value: str, choices: type[StrEnum]) -> None:
    if new_value := RENAMED_VALUES.get(("", option, value)):
        raise ConfigError(f"{option}={value} was renamed: use {option}={new_value}.")
    if value not in list(choices):
        raise ConfigError(f"{option} must be one of {', '.join(choices)}, got {value}.")
