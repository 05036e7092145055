"""Constraints of candidates: frozen entries, projections onto allowed sets, and costs.

A constraint acts twice in a step. `tangent` removes the forbidden part of noise and gradients.
`apply` moves all candidates, including stopped ones, into the allowed set after each step.
Shapes: B batch, U units, * the shape of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ebt_policy.energy.candidate_space import corrupt
from ebt_policy.energy.gradients import expand_units
from ebt_policy.energy.proximal import CostFn, end_variance, proximal_point

Project = Callable[[Tensor], Tensor]
"""Maps candidates (B, U, *) to the nearest allowed candidates (B, U, *)."""


class Position(NamedTuple):
    """The state of a descent after a step.

    Attributes:
        init: (B, U, *) initial candidates.
        before: (B, U, *) candidates before this step.
        moving: (B, U) bool, units that took this step; the others had stopped.
        size: size of this step, broadcastable to (B, U).
        level_before, level: levels before and after this step, broadcastable to (B, U); None
            without levels.
        finished: whether this was the last step.
    """

    init: Tensor
    before: Tensor
    moving: Tensor
    size: Tensor
    level_before: Tensor | None
    level: Tensor | None
    finished: bool


class Constraint:
    """Base class of constraints, which allows all candidates.

    Attributes:
        needs_levels: whether it requires a `LevelSchedule`.
    """

    needs_levels: ClassVar[bool] = False

    def tangent(self, direction: Tensor) -> Tensor:
        """Return the part of a direction (B, U, *) along which a candidate may move."""
        return direction

    def apply(self, x: Tensor, position: Position) -> Tensor:
        """Return candidates x (B, U, *), moved into the allowed set."""
        return x


@dataclass(frozen=True, eq=False)
class FrozenEntries(Constraint):
    """Entries that keep their initial values, such as committed actions.

    Args:
        mask: bool, broadcastable to (B, U, *); True for frozen entries.
    """

    mask: Tensor

    def tangent(self, direction: Tensor) -> Tensor:
        return direction.masked_fill(self.mask, 0.0)

    def apply(self, x: Tensor, position: Position) -> Tensor:
        return torch.where(self.mask, position.init, x)


@dataclass(frozen=True, eq=False)
class Projection(Constraint):
    """A projection of the candidates themselves after each step.

    Args:
        project: projection after each step; None for none.
        final: projection after the last step; None for ``project``.
    """

    project: Project | None
    final: Project | None = None

    def apply(self, x: Tensor, position: Position) -> Tensor:
        if position.finished and self.final is not None:
            return self.final(x)
        return x if self.project is None else self.project(x)


@dataclass(frozen=True, eq=False)
class CostStep(Constraint):
    """A step on a cost of finished candidates, after each step on the energy.

    Without levels, it is the step of the proximal gradient method, which converges to the minimum
    of energy + cost if the step size is constant and at most 1. Along levels, the cost moves the
    end that a candidate is heading for, in proportion to the variance of this end at the level
    before the step (see `end_variance`).

    Args:
        cost: see `CostFn`; differentiable.
    """

    cost: CostFn

    def apply(self, x: Tensor, position: Position) -> Tensor:
        moving = expand_units(position.moving, x)
        if position.level is None or position.level_before is None:
            # Larger step sizes belong to energies of another scale; the data has unit variance.
            variance = position.size.clamp(max=1.0)
            return torch.where(moving, proximal_point(self.cost, x, variance), x)
        units = x.shape[:2]
        start, stop = position.level_before.expand(units), position.level.expand(units)
        covered = expand_units((stop - start) / (1 - start), x)  # fraction of the path to the end
        end = position.before + (x - position.before) / covered
        shifted = proximal_point(self.cost, end, end_variance(start))
        return torch.where(moving, x + covered * (shifted - end), x)


@dataclass(frozen=True, eq=False)
class PathProjection(Constraint):
    """A projection of the end that a candidate is heading for on its path from noise.

    At level g a candidate is x = g y + (1 - g) n. Its end y is projected, and the candidate moves
    to level g of the path to the projected end. Projecting x itself would mix clean and noisy
    entries, on which a level-conditioned energy was never trained.

    Args:
        noise: n (B, U, *), the starts of the paths.
        project: projection of the ends y after each step; None for none.
        final: projection of the candidates after the last step; None for ``project``.
    """

    noise: Tensor
    project: Project | None
    final: Project | None = None

    needs_levels: ClassVar[bool] = True

    def apply(self, x: Tensor, position: Position) -> Tensor:
        if position.finished:
            final = self.final or self.project
            return x if final is None else final(x)
        if self.project is None or position.level is None:
            return x
        level = position.level.expand(x.shape[:2])
        g = expand_units(level, x)
        return corrupt(self.project((x - (1 - g) * self.noise) / g), self.noise, level)
