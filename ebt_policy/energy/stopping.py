"""When a unit stops before the schedule ends.

A rule acts at two points of a step. `review` looks back once the energy of the last step is known,
and `decide` looks ahead once the gradient is known. Shapes: B batch, U units, M candidates of a
unit, adjacent, * the shape of a unit, N steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ebt_policy.energy.gradients import expand_units
from ebt_policy.energy.result import StopReason, is_moving
from ebt_policy.energy.schedules import Steps


class StepView(NamedTuple):
    """What a rule sees of step k before it is taken.

    Attributes:
        k: steps done.
        x: (B, U, *) candidates.
        grad_norm: (B, U).
        displacement: step size, broadcastable to (B, U) -> the displacement (B, U, *) it gives.
        moving: (B, U) units that take this step.
        reason: (B, U) a `StopReason`; ``STEPS_DONE`` while no rule has stopped the unit.
        steps: all steps.
        size: of this step, broadcastable to (B, U).
        until: steps done after it; more than k + 1 where one step covers the rest.
        predicted_end: (B, U, *) where straight on a path led at the step before; None at first.
    """

    k: int
    x: Tensor
    grad_norm: Tensor
    displacement: Callable[[Tensor], Tensor]
    moving: Tensor
    reason: Tensor
    steps: Steps
    size: Tensor
    next_step: int
    predicted_end: Tensor | None


class NeverStop:
    """Base of all rules; by this one every unit takes all steps.

    Attributes:
        needs_levels: True for a rule that needs a schedule with levels, False for one that needs a
            schedule without; None for either.
        compares_energies: whether it needs the final energy, and a descent without momentum.
    """

    needs_levels: ClassVar[bool | None] = None
    compares_energies: ClassVar[bool] = False

    @property
    def rules(self) -> tuple[NeverStop, ...]:
        """The rules that this one consists of."""
        return (self,)

    def review(
        self, path: list[Tensor], energies: list[Tensor], x: Tensor, value: Tensor, reason: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return candidates, their energies and `StopReason`, in view of the last step.

        Args:
            path: candidates so far; the last ones may be replaced in place.
            energies: (B, U) each, before each step so far.
            x: (B, U, *) candidates now.
            value: (B, U) their energies.
            reason: (B, U), as in `StepView`.
        """
        return x, value, reason

    def decide(self, view: StepView) -> StepView:
        """Return which units take the next step, its size, and which of them stop with it.

        The fields moving, reason, size, until and predicted_end may change.
        """
        return view

    def hold(self, displacement: Tensor, moving: Tensor) -> Tensor:
        """Return a displacement (B, U, *) that is zero for units that have stopped."""
        return displacement

    def all_stopped(self, reason: Tensor) -> bool:
        """Return whether the loop can end."""
        return False


class _StoppingRule(NeverStop):
    """Base of the rules that do stop units."""

    def hold(self, displacement: Tensor, moving: Tensor) -> Tensor:
        return displacement.masked_fill(~expand_units(moving, displacement), 0.0)


@dataclass(frozen=True)
class GradientNorm(_StoppingRule):
    """A unit stops, alone and for good, once its gradient norm is below a tolerance.

    For landscapes that are flat at the data; along levels the gradient never fades.

    Args:
        tolerance: positive.
    """

    tolerance: float

    def __post_init__(self) -> None:
        _require_positive("the gradient norm to stop at", self.tolerance)

    def decide(self, view: StepView) -> StepView:
        moving = view.moving & (view.grad_norm >= self.tolerance)
        reason = view.reason.masked_fill(view.moving & ~moving, StopReason.GRADIENT_NORM.value)
        return view._replace(moving=moving, reason=reason)

    def all_stopped(self, reason: Tensor) -> bool:
        return not bool(is_moving(reason).any())


@dataclass(frozen=True)
class StraightPath(_StoppingRule):
    """A unit lands early where its path is straight.

    At each step the end of the path is predicted by going straight on. Once the prediction moves by
    less than the tolerance, the unit goes there in one step and stops. The M candidates of a unit
    land together: going on for one costs as much as for all.

    Args:
        tolerance: root mean square of the movement, per unit of level; positive.
        num_candidates: M.
    """

    tolerance: float
    num_candidates: int = 1

    needs_levels: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        _require_positive("the straightness to stop at", self.tolerance)
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {self.num_candidates}.")

    def decide(self, view: StepView) -> StepView:
        k, levels, remaining = view.k, view.steps.levels, view.steps.sizes[view.k :].sum(0)
        end = view.x + view.displacement(remaining)
        if view.predicted_end is None or levels is None:
            return view._replace(predicted_end=end)
        change = (end - view.predicted_end).square().flatten(2).mean(-1)
        change = change.unflatten(1, (-1, self.num_candidates)).mean(-1).sqrt()
        change = change.repeat_interleave(self.num_candidates, dim=1)
        landing = view.moving & (change < self.tolerance * (levels[k] - levels[k - 1]))
        # When the last ones land, the step ends the descent.
        next_step = view.next_step if bool((view.moving & ~landing).any()) else view.steps.count
        return view._replace(
            reason=view.reason.masked_fill(landing, StopReason.STRAIGHT_PATH.value),
            size=torch.where(landing, remaining, view.size),
            next_step=next_step,
            predicted_end=end,
        )


@dataclass(frozen=True)
class RejectIncreases(_StoppingRule):
    """A unit whose energy rose in a step goes back to where it was, and stops there."""

    needs_levels: ClassVar[bool | None] = False
    compares_energies: ClassVar[bool] = True

    def review(
        self, path: list[Tensor], energies: list[Tensor], x: Tensor, value: Tensor, reason: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not energies:
            return x, value, reason
        rose = is_moving(reason) & (value > energies[-1])
        x = path[-1] = torch.where(expand_units(rose, x), path[-2], x)
        value = torch.where(rose, energies[-1], value)
        return x, value, reason.masked_fill(rose, StopReason.ENERGY_INCREASE.value)


@dataclass(frozen=True)
class FirstOf(_StoppingRule):
    """A unit stops by the first of several rules.

    Args:
        members: the rules, at least one.
    """

    members: tuple[NeverStop, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("FirstOf needs at least one rule; use NeverStop for none.")

    @property
    def rules(self) -> tuple[NeverStop, ...]:
        return self.members

    def review(
        self, path: list[Tensor], energies: list[Tensor], x: Tensor, value: Tensor, reason: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        for rule in self.members:
            x, value, reason = rule.review(path, energies, x, value, reason)
        return x, value, reason

    def decide(self, view: StepView) -> StepView:
        for rule in self.members:
            view = rule.decide(view)
        return view

    def all_stopped(self, reason: Tensor) -> bool:
        return any(rule.all_stopped(reason) for rule in self.members)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")
