"""The result of an episode, and its summary for tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ebt_policy.evaluation.statistics import percentiles
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.supervisor import STOPPED, State, StateChange


@dataclass
class EpisodeResult:
    """The result of an episode.

    Attributes:
        seed: seed of a simulated robot and of the policy's noise.
        score, success: best reward, and whether the task was solved; None for a real robot.
        seconds: duration.
        ticks: all ticks of the episode, without their observations.
        overruns, ticks_without_plan: see `ControlLoop`.
        latencies: latencies of the predictions, s.
        plan_costs: costs of the plans, nats.
        plan_inconsistencies: measured inconsistencies of the plans, see `Plan`.
        transition_jumps, transition_second_differences: norms of the values of each
            `ChunkTransition`, in units of the action.
        second_difference: mean norm of the second differences of the commands at all other ticks,
            for comparison; None if there are none.
        ended: state at the end, and its reason.
        stops: changes of state by which the robot was held or stopped.
        acknowledged: whether a person resumed or re-armed the robot after the episode.
        kept: whether the episode counts and its recording is kept.
    """

    seed: int
    score: float | None = None
    success: bool | None = None
    seconds: float = 0.0
    ticks: list[Tick] = field(default_factory=list)
    overruns: int = 0
    ticks_without_plan: int = 0
    latencies: list[float] = field(default_factory=list)
    plan_costs: list[float] = field(default_factory=list)
    plan_inconsistencies: list[float] = field(default_factory=list)
    transition_jumps: list[float] = field(default_factory=list)
    transition_second_differences: list[float] = field(default_factory=list)
    second_difference: float | None = None
    ended: tuple[State, str] = (State.DISARMED, "")
    stops: list[StateChange] = field(default_factory=list)
    acknowledged: bool = False
    kept: bool = True

    @property
    def completed(self) -> bool:
        """Whether the robot was neither held nor stopped at the end."""
        return self.ended[0] not in STOPPED

    @property
    def interventions(self) -> int:
        """How often a person took over."""
        flags = [False, *(tick.is_human for tick in self.ticks)]
        return sum(now and not before for before, now in pairwise(flags))

    def summary(self) -> dict[str, Any]:
        """Return the values for tables by name; times are in ms, except "seconds"."""
        span = self.ticks[-1].began - self.ticks[0].began
        return {
            "seed": self.seed,
            "score": self.score,
            "success": self.success,
            "seconds": self.seconds,
            "ticks": len(self.ticks),
            "rate_hz": (len(self.ticks) - 1) / max(span, 1e-9),
            "late_ms": percentiles([1e3 * tick.late for tick in self.ticks]),
            "latency_ms": percentiles_ms(self.latencies),
            "overruns": self.overruns,
            "ticks_without_plan": self.ticks_without_plan,
            "clamped_ticks": sum(tick.is_clamped for tick in self.ticks),
            "human_ticks": sum(tick.is_human for tick in self.ticks),
            "interventions": self.interventions,
            "transition_jump": mean_or_none(self.transition_jumps),
            "transition_second_difference": mean_or_none(self.transition_second_differences),
            "second_difference": self.second_difference,
            "ended": str(self.ended[0]),
            "reason": self.ended[1],
            "stops": [[str(change.state), change.reason] for change in self.stops],
            "kept": self.kept,
        }


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean of the values, None if there are none."""
    return float(np.mean(values)) if values else None


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return the percentiles of times in s, converted to ms; None if there are none."""
    return percentiles([1e3 * s for s in seconds]) if seconds else None


def mean_second_difference(ticks: Sequence[Tick], excluded: set[int]) -> float | None:
    """Return the mean norm of the second differences of the sent commands; None if there are none.

    Args:
        ticks: ticks of an episode.
        excluded: numbers of the ticks to exclude.
    """
    sent = {tick.number: tick.command for tick in ticks if tick.sent and tick.command is not None}
    lengths = [
        float(np.linalg.norm(command - 2 * sent[number - 1] + sent[number - 2]))
        for number, command in sent.items()
        if number not in excluded and number - 1 in sent and number - 2 in sent
    ]
    return mean_or_none(lengths)
