"""Equilibrium matching: one landscape for all levels, which is flat at the data.

Shapes: B batch, U units. Notation as in `ebt_policy.energy.objectives.base`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebt_policy.energy.candidate_space import EUCLIDEAN, CandidateSpace
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.objectives.base import require
from ebt_policy.energy.objectives.flow import Flow
from ebt_policy.energy.schedules import FixedSteps


class Equilibrium(Flow):
    """One landscape for all levels whose gradient decays to zero at the data.

        loss = | -dE/dx(x) - c(g) (y - n) |^2,   c(g) = min(1, (1 - g) / w)

    Equilibrium matching (Wang & Du 2025, "Equilibrium Matching: Generative Modeling with Implicit
    Energy-Based Models"), truncated-decay variant. Demonstrations are the minima, so a descent may
    take any number of steps and stop where the gradient vanishes.

    N steps of size 1/N would not reach the end: where the field decays, a step of size a reduces
    the distance d to the end only to (1 - a / w) d. So the step size is `PATH_MULTIPLE` / N. It is
    at most the decay width w, with which one step covers the decaying part. It is at least 1/N, so
    that N steps cover the path.

    Args:
        space: space of the candidates.
        decay_width: w in (0, 1], the last fraction of the path, over which the field decays.
        noise_samples_per_target: as in `Flow`.
    """

    # Length of all steps, relative to the path. For a decay width of 0.2 the remaining distance is
    # at most e^-6 of that width, for any number of steps.
    PATH_MULTIPLE = 2.0

    def __init__(
        self,
        space: CandidateSpace = EUCLIDEAN,
        *,
        decay_width: float = 0.2,
        noise_samples_per_target: int = 1,
    ) -> None:
        super().__init__(
            space,
            condition_on_noise_level=False,
            noise_samples_per_target=noise_samples_per_target,
        )
        require(0 < decay_width <= 1, "decay_width", "in (0, 1]", decay_width)
        self.decay_width = decay_width

    def velocity_scale(self, level: Tensor) -> Tensor:
        return ((1 - level) / self.decay_width).clamp(max=1.0)

    def descent(
        self,
        num_steps: int,
        *,
        num_candidates: int = 1,
        level: float = 0.0,
        device: torch.device | None = None,
    ) -> Descent:
        longest = min(self.decay_width, self.PATH_MULTIPLE / num_steps)
        return Descent(FixedSteps(num_steps, max((1.0 - level) / num_steps, longest)))
