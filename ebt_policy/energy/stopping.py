"""Stopping rules, which stop a unit before the schedule ends.

A rule acts at two points of a step. `review` judges the last step when its energy is known, and
`decide` judges the next step when its gradient is known. Shapes: B batch, U units, M adjacent
candidates of a unit, * the shape of a unit, N steps.
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
    """The state of a descent before step k, which stopping rules judge.

    Attributes:
        k: number of steps done.
        x: (B, U, *) candidates.
        grad_norm: (B, U) Euclidean norm of each unit's gradient.
        displacement: maps a step size, broadcastable to (B, U), to a displacement (B, U, *).
        moving: (B, U) bool, True for units that take this step.
        reason: (B, U) a `StopReason`; ``STEPS_DONE`` while no rule has stopped the unit.
        steps: all steps of the descent.
        size: size of this step, broadcastable to (B, U).
        next_step: number of steps done after this one; more than k + 1 if it covers the rest.
        predicted_end: (B, U, *) end of a straight path, predicted at the previous step; None at
            first.
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
    """Base class of stopping rules, with which every unit takes all steps.

    Attributes:
        needs_levels: True if the rule needs a schedule with levels, False if it needs one without,
            None if it works with both.
        compares_energies: whether it needs the final energy and an update without momentum.
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
        """Return candidates, energies and stop reasons after judging the last step.

        Args:
            path: candidates (B, U, *) so far; the last entry may be replaced in place.
            energies: energies (B, U) before each step so far.
            x: (B, U, *) current candidates.
            value: (B, U) energies of the current candidates.
            reason: (B, U), as in `StepView`.
        """
        return x, value, reason

    def decide(self, view: StepView) -> StepView:
        """Return a view with the units that take the next step, its size, and those that then stop.

        The fields moving, reason, size, next_step and predicted_end may change.
        """
        return view

    def hold(self, displacement: Tensor, moving: Tensor) -> Tensor:
        """Return a displacement (B, U, *) that is zero for units that have stopped."""
        return displacement

    def all_stopped(self, reason: Tensor) -> bool:
        """Return whether the loop can end, because all units have stopped."""
        return False


class _StoppingRule(NeverStop):
    """Base class of the rules that stop units."""

    def hold(self, displacement: Tensor, moving: Tensor) -> Tensor:
        return displacement.masked_fill(~expand_units(moving, displacement), 0.0)


@dataclass(frozen=True, eq=False)
class GradientNorm(_StoppingRule):
    """A rule that stops a unit once its gradient norm is below a tolerance.

    It suits landscapes that are flat at the data. Along levels the gradient does not vanish.

    Args:
        tolerance: gradient norm below which a unit stops; positive.
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


@dataclass(frozen=True, eq=False)
class StraightPath(_StoppingRule):
    """A rule that ends the path of a unit early if the path is straight.

    Each step predicts the end of the path by a straight line. Once the prediction changes by less
    than the tolerance, the unit moves to that end in one step and stops. The M candidates of a unit
    end together, because a step of one costs as much as a step of all.

    Args:
        tolerance: root mean square change of the predicted end, per unit of level; positive.
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
        # The step ends the descent if all moving units land in it.
        next_step = view.next_step if bool((view.moving & ~landing).any()) else view.steps.count
        return view._replace(
            reason=view.reason.masked_fill(landing, StopReason.STRAIGHT_PATH.value),
            size=torch.where(landing, remaining, view.size),
            next_step=next_step,
            predicted_end=end,
        )


@dataclass(frozen=True, eq=False)
class RejectIncreases(_StoppingRule):
    """A rule that undoes a step in which a unit's energy increased, and stops the unit."""

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


@dataclass(frozen=True, eq=False)
class FirstOf(_StoppingRule):
    """A combination of rules, in which the first rule that applies stops a unit.

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
