"""What happened in an episode, and its summary for tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ebt_policy.evaluation.statistics import percentiles
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.supervisor import STOPPED, State, StateChange


@dataclass
class EpisodeResult:
    """The result of an episode.

    Attributes:
        seed: of a simulated robot.
        score, success: of a simulated robot, otherwise None.
        seconds: duration.
        ticks: all of its ticks.
        overruns, ticks_without_plan: see `ControlLoop`.
        latencies: of its predictions, s.
        plan_inconsistencies: of its plans, where they were measured; see `Plan`.
        transition_jumps, transition_second_differences: lengths, in units of the action; see
            `ChunkTransition`.
        second_difference: mean length of the second differences of the commands at all other ticks,
            for comparison; None without any.
        ended: the state at the end, and its reason.
        stops: each time the robot was held or stopped.
        acknowledged: whether a person let the robot continue, or re-armed it, after the episode.
        kept: whether it counts, and its recording stays.
    """

    seed: int
    score: float | None = None
    success: bool | None = None
    seconds: float = 0.0
    ticks: list[Tick] = field(default_factory=list)
    overruns: int = 0
    ticks_without_plan: int = 0
    latencies: list[float] = field(default_factory=list)
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
        """Whether it ended by itself or by a person's key, neither held nor stopped."""
        return self.ended[0] not in STOPPED

    def summary(self) -> dict[str, Any]:
        """Return numbers for a table; times in ms unless they are named seconds."""
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
            "transition_jump": mean_or_none(self.transition_jumps),
            "transition_second_difference": mean_or_none(self.transition_second_differences),
            "second_difference": self.second_difference,
            "ended": str(self.ended[0]),
            "reason": self.ended[1],
            "stops": [[str(change.state), change.reason] for change in self.stops],
            "kept": self.kept,
        }


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean, None of an empty sequence."""
    return float(np.mean(values)) if values else None


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return percentiles of times (s) in ms, None of an empty sequence."""
    return percentiles([1e3 * s for s in seconds]) if seconds else None


def mean_second_difference(ticks: Sequence[Tick], excluded: set[int]) -> float | None:
    """Return the mean length of the second differences of the sent commands; None without any.

    Args:
        excluded: numbers of ticks to leave out.
    """
    sent = {tick.number: tick.command for tick in ticks if tick.sent and tick.command is not None}
    lengths = [
        float(np.linalg.norm(command - 2 * sent[number - 1] + sent[number - 2]))
        for number, command in sent.items()
        if number not in excluded and number - 1 in sent and number - 2 in sent
    ]
    return mean_or_none(lengths)
