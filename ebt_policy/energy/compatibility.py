"""Which parts of a descent exclude each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebt_policy.energy.deadline import Deadline
from ebt_policy.energy.gradients import SharedFirstGradient, ZeroInitGradient
from ebt_policy.energy.updates import NesterovMomentum

if TYPE_CHECKING:
    from ebt_policy.energy.descent import Descent


def check_parts(descent: Descent) -> None:
    """Check the parts of a descent against each other.

    Raises:
        ValueError: naming two parts that exclude each other, or a deadline that is not positive.
    """
    stop, schedule, gradient = descent.stop, descent.schedule, descent.gradient
    rule, kind = type(stop).__name__, type(schedule).__name__
    if stop.needs_levels is True and not schedule.has_levels:
        raise ValueError(f"stop={rule} needs a LevelSchedule, whose path has an end; got {kind}.")
    if stop.needs_levels is False and schedule.has_levels:
        raise ValueError(
            f"stop={rule} excludes {kind}: energies at different levels do not compare."
        )
    if stop.compares_energies and not descent.final_energy:
        raise ValueError(f"stop={rule} needs final_energy=True.")
    if stop.compares_energies and isinstance(descent.update, NesterovMomentum):
        raise ValueError(f"stop={rule} excludes NesterovMomentum, whose energies may rise.")
    for constraint in descent.constraints:
        if constraint.needs_levels and not schedule.has_levels:
            raise ValueError(f"{type(constraint).__name__} needs a LevelSchedule, got {kind}.")
    if isinstance(gradient, SharedFirstGradient) and descent.mirror is not None:
        raise ValueError("gradient=SharedFirstGradient excludes a mirror.")
    if isinstance(gradient, SharedFirstGradient) and descent.deadline_s is not None:
        raise ValueError(
            "gradient=SharedFirstGradient excludes deadline_s: the time of the first step is the "
            "measure of the others; use PlainGradient."
        )
    if isinstance(gradient, ZeroInitGradient) and descent.noise is not None:
        raise ValueError("gradient=ZeroInitGradient excludes noise: the candidate is not zero.")
    Deadline(descent.deadline_s, 1)  # checks the budget
