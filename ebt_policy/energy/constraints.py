"""What a candidate may not leave: frozen entries, and sets that it is projected onto.

A constraint acts twice in a step. `tangent` removes what noise and gradients may not move, and
`apply` moves the candidate of each step, stopped units too. Shapes: B batch, U units, * the shape
of a unit.
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
"""Candidates (B, U, *) -> the nearest that are allowed."""


class Position(NamedTuple):
    """Where a descent is after a step.

    Attributes:
        init: (B, U, *) the candidates that it started from.
        level: after this step, broadcastable to (B, U); None without levels.
        finished: whether this was the last step.
    """

    init: Tensor
    level: Tensor | None
    finished: bool


class Constraint:
    """Base of all constraints; this one allows everything.

    Attributes:
        needs_levels: whether it acts along the levels of a `LevelSchedule`.
    """

    needs_levels: ClassVar[bool] = False

    def tangent(self, direction: Tensor) -> Tensor:
        """Return the part of a direction (B, U, *) along which a candidate may move."""
        return direction

    def apply(self, x: Tensor, position: Position) -> Tensor:
        """Return candidates x (B, U, *) moved to where they are allowed."""
        return x


@dataclass(frozen=True)
class FrozenEntries(Constraint):
    """Entries that never leave the initial candidate, such as actions that are committed.

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
        project: for candidates on the way; None leaves them free.
        final: for candidates after the last step, ``project`` by default.
    """

    project: Project | None
    final: Project | None = None

    def apply(self, x: Tensor, position: Position) -> Tensor:
        if position.finished and self.final is not None:
            return self.final(x)
        return x if self.project is None else self.project(x)


@dataclass(frozen=True)
class PathProjection(Constraint):
    """A projection of the end that a candidate is heading for, along the path from noise to it.

    At level g a candidate is x = g y + (1 - g) n. Its end y is projected, and the candidate is put
    where the path to the new end lies. A level-conditioned energy expects all entries to be equally
    noisy; it was never trained on clean entries beside noisy ones.

    Args:
        noise: n (B, U, *), where the paths start.
        project: for the ends on the way; None leaves them free.
        final: for candidates after the last step, ``project`` by default.
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
