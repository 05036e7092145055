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
from ebt_policy.energy.result import StopReason
from ebt_policy.energy.schedules import Steps


class StepView(NamedTuple):
    """What a rule sees of step k before it is taken.

    Attributes:
        k: steps done.
        x: (B, U, *) candidates.
        grad_norm: (B, U).
        displacement: step size, broadcastable to (B, U) -> the displacement (B, U, *) it gives.
        moving: (B, U) units that have not stopped.
        steps: all steps.
        until: steps done after this one; more than k + 1 where one step covers the rest.
        predicted_end: `Decision.predicted_end` of the step before; None at first.
    """

    k: int
    x: Tensor
    grad_norm: Tensor
    displacement: Callable[[Tensor], Tensor]
    moving: Tensor
    steps: Steps
    until: int
    predicted_end: Tensor | None


class Decision(NamedTuple):
    """What a rule decides of a step.

    Attributes:
        moving: (B, U) units that take this step.
        continuing: (B, U) units that may take the next one.
        size: of this step, broadcastable to (B, U).
        until: steps done after it.
        predicted_end: (B, U, *) for the next `StepView`.
    """

    moving: Tensor
    continuing: Tensor
    size: Tensor
    until: int
    predicted_end: Tensor | None = None


class NeverStop:
    """Base of all rules; by this one every unit takes all steps.

    Attributes:
        reason: of the units that a rule stops.
        needs_levels: True for a rule that needs a schedule with levels, False for one that needs a
            schedule without; None for either.
        compares_energies: whether it needs the final energy, and a descent without momentum.
    """

    reason: ClassVar[StopReason] = StopReason.STEPS_DONE
    needs_levels: ClassVar[bool | None] = None
    compares_energies: ClassVar[bool] = False

    def review(
        self, path: list[Tensor], energies: list[Tensor], x: Tensor, value: Tensor, moving: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return candidates, their energies and the units that go on, after the last step.

        Args:
            path: candidates so far; the last ones may be replaced in place.
            energies: (B, U) each, before each step so far.
            x: (B, U, *) candidates now.
            value: (B, U) their energies.
            moving: (B, U) units that have not stopped.
        """
        return x, value, moving

    def decide(self, view: StepView) -> Decision:
        """Return which units take the next step, and its size."""
        size = view.steps.sizes[view.k : view.until].sum(0)
        return Decision(view.moving, view.moving, size, view.until)

    def hold(self, displacement: Tensor, moving: Tensor) -> Tensor:
        """Return a displacement (B, U, *) that is zero for units that have stopped."""
        return displacement

    def all_stopped(self, moving: Tensor) -> bool:
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

    reason: ClassVar[StopReason] = StopReason.GRADIENT_NORM

    def __post_init__(self) -> None:
        _require_positive("the gradient norm to stop at", self.tolerance)

    def decide(self, view: StepView) -> Decision:
        moving = view.moving & (view.grad_norm >= self.tolerance)
        return super().decide(view._replace(moving=moving))

    def all_stopped(self, moving: Tensor) -> bool:
        return not bool(moving.any())


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

    reason: ClassVar[StopReason] = StopReason.STRAIGHT_PATH
    needs_levels: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        _require_positive("the straightness to stop at", self.tolerance)

    def decide(self, view: StepView) -> Decision:
        k, sizes, levels = view.k, view.steps.sizes, view.steps.levels
        size, rest = sizes[k : view.until].sum(0), sizes[k:].sum(0)
        end = view.x + view.displacement(rest)
        if view.predicted_end is None or levels is None:
            return Decision(view.moving, view.moving, size, view.until, end)
        change = (end - view.predicted_end).square().flatten(2).mean(-1)
        change = change.unflatten(1, (-1, self.num_candidates)).mean(-1).sqrt()
        change = change.repeat_interleave(self.num_candidates, dim=1)
        landing = view.moving & (change < self.tolerance * (levels[k] - levels[k - 1]))
        continuing = view.moving & ~landing
        until = view.until if bool(continuing.any()) else view.steps.count
        # When all land, the size covers the same rest for every unit.
        return Decision(view.moving, continuing, torch.where(landing, rest, size), until, end)


@dataclass(frozen=True)
class RejectIncreases(_StoppingRule):
    """A unit whose energy rose in a step goes back to where it was, and stops there."""

    reason: ClassVar[StopReason] = StopReason.ENERGY_INCREASE
    needs_levels: ClassVar[bool | None] = False
    compares_energies: ClassVar[bool] = True

    def review(
        self, path: list[Tensor], energies: list[Tensor], x: Tensor, value: Tensor, moving: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not energies:
            return x, value, moving
        rose = moving & (value > energies[-1])
        x = path[-1] = torch.where(expand_units(rose, x), path[-2], x)
        return x, torch.where(rose, energies[-1], value), moving & ~rose


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")
