"""Constraints of candidates: frozen entries, and projections onto allowed sets.

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

Project = Callable[[Tensor], Tensor]
"""Maps candidates (B, U, *) to the nearest allowed candidates (B, U, *)."""


class Position(NamedTuple):
    """The state of a descent after a step.

    Attributes:
        init: (B, U, *) initial candidates.
        level: level after this step, broadcastable to (B, U); None without levels.
        finished: whether this was the last step.
    """

    init: Tensor
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
