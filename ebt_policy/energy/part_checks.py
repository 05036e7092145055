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
    schedule, gradient = descent.schedule, descent.gradient
    kind = type(schedule).__name__
    for rule in descent.stop.rules:
        name = type(rule).__name__
        if rule.needs_levels is True and not schedule.has_levels:
            raise ValueError(f"stop={name} needs a LevelSchedule; a path of {kind} has no end.")
        if rule.needs_levels is False and schedule.has_levels:
            raise ValueError(f"stop={name} excludes {kind}, along which energies do not compare.")
        if rule.compares_energies and not descent.final_energy:
            raise ValueError(f"stop={name} needs final_energy=True.")
        if rule.compares_energies and isinstance(descent.update, NesterovMomentum):
            raise ValueError(f"stop={name} excludes NesterovMomentum, whose energies may rise.")
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
