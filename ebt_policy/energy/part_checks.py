"""Checks that the parts of a descent fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebt_policy.energy.deadline import Deadline
from ebt_policy.energy.gradients import SharedFirstGradient, ZeroInitGradient
from ebt_policy.energy.updates import NesterovMomentum

if TYPE_CHECKING:
    from ebt_policy.energy.descent import Descent


def check_parts(descent: Descent) -> None:
    """Check that the parts of a descent fit together.

    Raises:
        ValueError: if two parts exclude each other, or the deadline is not positive.
    """
    schedule, gradient = descent.schedule, descent.gradient
    kind = type(schedule).__name__
    for rule in descent.stop.rules:
        name = type(rule).__name__
        if rule.needs_levels is True and not schedule.has_levels:
            raise ValueError(f"stop={name} needs a LevelSchedule; {kind} has no last level.")
        if rule.needs_levels is False and schedule.has_levels:
            raise ValueError(
                f"stop={name} cannot be used with {kind}: energies at different levels are not "
                "comparable."
            )
        if rule.compares_energies and not descent.final_energy:
            raise ValueError(f"stop={name} needs final_energy=True.")
        if rule.compares_energies and isinstance(descent.update, NesterovMomentum):
            raise ValueError(
                f"stop={name} cannot be used with NesterovMomentum, which may increase the energy."
            )
    for constraint in descent.constraints:
        if constraint.needs_levels and not schedule.has_levels:
            raise ValueError(f"{type(constraint).__name__} needs a LevelSchedule, got {kind}.")
    if descent.corrector is not None and not schedule.has_levels:
        raise ValueError(f"a corrector needs a LevelSchedule, got {kind}.")
    if isinstance(gradient, SharedFirstGradient) and descent.mirror is not None:
        raise ValueError("gradient=SharedFirstGradient cannot be used with a mirror.")
    if isinstance(gradient, SharedFirstGradient) and descent.deadline_s is not None:
        raise ValueError(
            "gradient=SharedFirstGradient cannot be used with deadline_s: its first step is "
            "cheaper than the others, whose time it must predict; use PlainGradient."
        )
    if isinstance(gradient, ZeroInitGradient) and descent.noise is not None:
        raise ValueError(
            "gradient=ZeroInitGradient cannot be used with noise, which makes the first candidate "
            "nonzero."
        )
    Deadline(descent.deadline_s, 1)  # raises ValueError if the budget is not positive
