"""The section ``execution`` of a run: when chunks are predicted and how they are executed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ebt_policy.config import FloatOrInfinity
from ebt_policy.errors import ConfigError
from ebt_policy.renamed_options import RENAMED_VALUES

MODES = ("blocking", "async", "rtc")


@dataclass(frozen=True)
class ExecutionOptions:
    """The options of the execution of chunks.

    Args:
        mode: "blocking": the next chunk is predicted after the last one has been executed, and the
            robot waits for it. "async": the next chunk is predicted during execution and takes over
            as soon as it arrives. "rtc": as "async", and the prediction is conditioned on the
            actions that are executed during inference. This is real-time chunking (Black et al.
            2025), implemented as a frozen prefix of the descent.
        warm: whether the descent of an energy policy starts from the last chunk.
        deadline_s: time limit of a prediction, s. The descent of an energy policy ends before a
            step that would exceed it. Other policies ignore it.
        max_wait_fraction: longest time that a tick without a plan waits for a prediction, as a
            fraction of a tick.
        max_plan_inconsistency: for energy policies; the plan inconsistency (nats) above which the
            robot is held. It is the energy of the rest of the last plan minus the energy of the new
            plan. Infinity only measures it; None does not measure it.
        budget_nats, max_rounds: see `ChunkConstraints`; for robots with ``robot.costs``.

    Raises:
        ConfigError: an option is invalid.
    """

    mode: Literal["blocking", "async", "rtc"] = "rtc"
    warm: bool = False
    deadline_s: float | None = None
    max_wait_fraction: float = 0.5
    max_plan_inconsistency: FloatOrInfinity | None = None
    budget_nats: float | None = None
    max_rounds: int = 1

    def __post_init__(self) -> None:
        if new_mode := RENAMED_VALUES.get(("execution", "mode", self.mode)):
            raise ConfigError(
                f"execution.mode={self.mode} was renamed: use execution.mode={new_mode}."
            )
        if self.mode not in MODES:
            raise ConfigError(f"execution.mode must be one of {', '.join(MODES)}, got {self.mode}.")
        if self.max_plan_inconsistency is not None and not self.max_plan_inconsistency > 0:
            raise ConfigError(
                "execution.max_plan_inconsistency must be positive, got "
                f"{self.max_plan_inconsistency}."
            )
        if self.budget_nats is not None and self.budget_nats < 0:
            raise ConfigError(
                f"execution.budget_nats must not be negative, got {self.budget_nats}."
            )
        if self.max_rounds < 1:
            raise ConfigError(f"execution.max_rounds must be at least 1, got {self.max_rounds}.")
        if not 0 <= self.max_wait_fraction < 1:
            raise ConfigError(
                "execution.max_wait_fraction must be in [0, 1) of a tick, got "
                f"{self.max_wait_fraction}."
            )
        if self.deadline_s is not None and not 0 < self.deadline_s < math.inf:
            raise ConfigError(
                f"execution.deadline_s must be positive and finite, got {self.deadline_s}."
            )
