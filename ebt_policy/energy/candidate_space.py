"""The space of candidates: their initialisation, and their error against a target.

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
    """Return the cross-entropy (B, U), in nats, of targets (B, U) under logits (B, U, V).

    For units of K targets, (B, U, K) and logits (B, U, K, V), return the mean over the targets.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    losses = losses.view_as(target)
    return losses if losses.ndim == 2 else losses.flatten(2).mean(-1)


def corrupt(target: Tensor, normal: Tensor, level: Tensor) -> Tensor:
    """Return x = g y + (1 - g) n at levels g (B, U) of the straight path from noise to target."""
    g = expand_units(level, target)
    return g * target + (1 - g) * normal


@dataclass(frozen=True, eq=False)
class CandidateSpace:
    """The representation, the initialisation and the error of candidates.

    Attributes:
        error: maps candidates and targets to errors (B, U), which training minimises.
        mirror: see `MirrorMap`; None if the energy takes candidates directly. It must map zeros to
            zeros.
        num_classes: V, if candidates are logits and targets are class indices; None if targets have
            the shape of candidates.
        forward_process: maps targets, normal noise and levels (B, U) to noisy observations of the
            targets, where candidates start; None if candidates start from noise alone.
    """

    error: Callable[[Tensor, Tensor], Tensor] = squared_error
    mirror: MirrorMap | None = None
    num_classes: int | None = None
    forward_process: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def initialize(self, target: Tensor, normal: Tensor, level: Tensor | None = None) -> Tensor:
        """Return initial candidates (B, U, *).

        Args:
            target: targets of the candidates.
            normal: (B, U, *) normal noise of the candidates' shape.
            level: (B, U) levels in [0, 1] at which candidates start, 1 for their target; None
                starts as at inference.
        """
        if self.forward_process is not None:
            candidate_level = target.new_zeros(target.shape[:2]) if level is None else level
            return self.forward_process(target, normal, candidate_level)
        return normal if level is None else corrupt(self.from_target(target), normal, level)

    def zeros_like_candidate(self, target: Tensor) -> Tensor:
        """Return a candidate of zeros for each target.

        With classes, a single vector is expanded to all targets. A mirror map can detect this by
        its strides and map the vector only once.
        """
        if self.num_classes is None:
            return torch.zeros_like(target)
        dtype = target.dtype if target.is_floating_point() else None
        zeros = torch.zeros(1, 1, self.num_classes, device=target.device, dtype=dtype)
        return zeros.expand(*target.shape, -1)

    def from_target(self, target: Tensor) -> Tensor:
        """Return the candidates that equal their targets.

        For a class, the logits give all other classes together a probability of about 1 / V.
        """
        if self.num_classes is None:
            return target
        return 2 * math.log(self.num_classes) * F.one_hot(target, self.num_classes).float()


EUCLIDEAN = CandidateSpace()
