"""What candidates are: how far one is from its target, and where it starts.

Shapes: B batch, U units, * the shape of a unit, V numbers of a candidate whose target is an index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebt_policy.energy.descent import MirrorMap


def squared_error(candidate: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each unit, (B, U)."""
    return (candidate - target).square().flatten(2).mean(-1)


def surprisal(logits: Tensor, target: Tensor) -> Tensor:
    """-log p of targets (B, U) under candidates (B, U, V): their cross-entropy, nats.

    Of units that hold several, (B, U, K) and (B, U, K, V), the mean.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    losses = losses.view_as(target)
    return losses if losses.ndim == 2 else losses.flatten(2).mean(-1)


def corrupt(target: Tensor, normal: Tensor, level: Tensor) -> Tensor:
    """x = g y + (1 - g) n for levels (B, U): the straight path from noise to the target."""
    g = level.reshape(*level.shape, *(1 for _ in target.shape[2:]))
    return g * target + (1 - g) * normal


@dataclass(frozen=True)
class CandidateSpace:
    """What candidates are, and how far one is from its target.

    Attributes:
        error: candidates and targets -> (B, U), what training makes small.
        mirror: see `MirrorMap`; None where the energy takes candidates as they are. It takes
            zeros to zeros.
        numbers: of a candidate whose target is the index of one of them; None where a target has
            the shape of a candidate.
        noised: targets, normal noise and levels (B, U) -> what is observed of the targets, where
            candidates start; None where they start from noise alone.
    """

    error: Callable[[Tensor, Tensor], Tensor] = squared_error
    mirror: MirrorMap | None = None
    numbers: int | None = None
    noised: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def start(self, target: Tensor, normal: Tensor, level: Tensor | None = None) -> Tensor:
        """Where candidates start from: as at inference, or nearer, at levels (B, U) in [0, 1]."""
        if self.noised is not None:
            at = target.new_zeros(target.shape[:2]) if level is None else level
            return self.noised(target, normal, at)
        return normal if level is None else corrupt(self.clean(target), normal, level)

    def empty(self, target: Tensor) -> Tensor:
        """A candidate of zeros for each target; where they have a size of their own, all are one
        that is expanded, so that what is to be made of it can be made once."""
        if self.numbers is None:
            return torch.zeros_like(target)
        dtype = target.dtype if target.is_floating_point() else None
        zeros = torch.zeros(1, 1, self.numbers, device=target.device, dtype=dtype)
        return zeros.expand(*target.shape, -1)

    def clean(self, target: Tensor) -> Tensor:
        """The candidate that is its target: of an index, logits that leave others 1/V in all."""
        if self.numbers is None:
            return target
        return 2 * math.log(self.numbers) * F.one_hot(target, self.numbers).float()


EUCLIDEAN = CandidateSpace()
