"""The space of candidates: where they start, and how far one is from its target.

Shapes: B batch, U units, * the shape of a unit, V classes where candidates are logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebt_policy.energy.gradients import expand_units
from ebt_policy.energy.mirror_map import MirrorMap


def squared_error(candidate: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each unit, (B, U)."""
    return (candidate - target).square().flatten(2).mean(-1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return -log p of targets (B, U) under candidates (B, U, V), nats.

    For units of K targets, (B, U, K) and (B, U, K, V), the mean over them.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    losses = losses.view_as(target)
    return losses if losses.ndim == 2 else losses.flatten(2).mean(-1)


def corrupt(target: Tensor, normal: Tensor, level: Tensor) -> Tensor:
    """Return x = g y + (1 - g) n for levels (B, U), the straight path from noise to the target."""
    g = expand_units(level, target)
    return g * target + (1 - g) * normal


@dataclass(frozen=True)
class CandidateSpace:
    """What candidates are, where they start, and how far one is from its target.

    Attributes:
        error: candidates and targets -> (B, U), which training minimises.
        mirror: see `MirrorMap`; None where the energy takes candidates as they are. It maps zeros
            to zeros.
        num_classes: V, for candidates that are logits and targets that are class indices; None
            where a target has the shape of a candidate.
        forward_process: targets, normal noise and levels (B, U) -> observations of the targets,
            where candidates start; None where they start from noise alone.
    """

    error: Callable[[Tensor, Tensor], Tensor] = squared_error
    mirror: MirrorMap | None = None
    num_classes: int | None = None
    forward_process: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def initialize(self, target: Tensor, normal: Tensor, level: Tensor | None = None) -> Tensor:
        """Return initial candidates: as at inference, or nearer to targets at levels (B, U)."""
        if self.forward_process is not None:
            candidate_level = target.new_zeros(target.shape[:2]) if level is None else level
            return self.forward_process(target, normal, candidate_level)
        return normal if level is None else corrupt(self.from_target(target), normal, level)

    def zeros_like_candidate(self, target: Tensor) -> Tensor:
        """Return a candidate of zeros for each target.

        With classes it is a single one, expanded, so that what is derived from it is derived once.
        """
        if self.num_classes is None:
            return torch.zeros_like(target)
        dtype = target.dtype if target.is_floating_point() else None
        zeros = torch.zeros(1, 1, self.num_classes, device=target.device, dtype=dtype)
        return zeros.expand(*target.shape, -1)

    def from_target(self, target: Tensor) -> Tensor:
        """Return the candidate that equals its target; for a class, logits that leave the others a
        probability of 1 / V in all."""
        if self.num_classes is None:
            return target
        return 2 * math.log(self.num_classes) * F.one_hot(target, self.num_classes).float()


EUCLIDEAN = CandidateSpace()
