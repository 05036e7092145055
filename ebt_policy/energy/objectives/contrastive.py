"""Contrastive training: low energies for demonstrations, high energies for samples.

Shapes: B batch, U units, M negatives. Notation as in `ebt_policy.energy.objectives.base`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ebt_policy.energy.candidate_space import EUCLIDEAN, CandidateSpace
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.objectives.base import Objective, require
from ebt_policy.energy.sampling import LangevinNoise, cosine_noise
from ebt_policy.energy.schedules import FixedSteps
from ebt_policy.energy.updates import ClippedGradient


def info_nce(positive: Tensor, negatives: Tensor) -> Tensor:
    """Return -log softmax of the positive among positive and negatives (van den Oord et al. 2018).

    Args:
        positive: energies (B, 1).
        negatives: energies (B, M).
    """
    logits = -torch.cat([positive, negatives], dim=1)
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


class Contrastive(Objective):
    """Classical energy-based training, which contrasts demonstrations with samples of the model.

        negatives x^-: M short Langevin chains from noise (Du & Mordatch 2019, "Implicit
        Generation and Generalization in Energy-Based Models"), or the initial candidates if
        ``steps`` is 0
        loss = InfoNCE(E(y), E(x^-)) + regularizer * mean(E^2)

    Args:
        space: space of the candidates.
        negatives: M, the number of samples per target.
        steps: number of steps of a chain.
        step_size: step size of a chain.
        noise: first and last standard deviation of the Langevin noise (cosine in between).
        regularizer: weight that keeps energies near zero, because InfoNCE does not fix their mean.
    """

    # Gradients of a classifier-like landscape vary by orders of magnitude, so they are clipped.
    MAX_GRAD_NORM = 10.0

    def __init__(
        self,
        space: CandidateSpace = EUCLIDEAN,
        *,
        negatives: int = 8,
        steps: int = 4,
        step_size: float = 0.1,
        noise: tuple[float, float] = (0.2, 0.002),
        regularizer: float = 0.001,
    ) -> None:
        super().__init__(space)
        require(negatives >= 1, "negatives", "at least 1", negatives)
        require(steps >= 0, "steps", "0 or more", steps)
        require(step_size > 0, "step_size", "positive", step_size)
        require(min(noise) >= 0, "noise", "not negative", noise)
        require(regularizer >= 0, "regularizer", "0 or more", regularizer)
        self.negatives, self.steps, self.step_size = negatives, steps, step_size
        self.noise, self.regularizer = LangevinNoise(cosine_noise(*noise)), regularizer

    def sample_noise(self, target: Tensor) -> dict[str, Any]:
        chains = target.repeat_interleave(self.negatives, dim=1)
        shape = (chains.shape[0], self.steps, *chains.shape[1:])
        langevin_noise = torch.randn(shape, device=chains.device, dtype=chains.dtype)
        return {"init": torch.randn_like(chains), "langevin_noise": langevin_noise}

    def forward(
        self, energy: EnergyFn, target: Tensor, noise: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        samples = noise["init"]
        if self.steps:
            langevin = replace(self.noise, predrawn=noise["langevin_noise"])
            descent = replace(self.descent(self.steps), noise=langevin, final_energy=False)
            with torch.no_grad():
                samples = descent(energy, samples).candidate
        energies = energy(torch.cat([target, samples.detach()], dim=1), None)
        units = target.shape[1]
        positive = energies[:, :units].flatten().unsqueeze(1)
        negatives = energies[:, units:].reshape(len(positive), -1)
        loss = info_nce(positive, negatives) + self.regularizer * energies.square().mean()
        return loss, {"energy_gap": (negatives.mean() - positive.mean()).detach()}

    def descent(
        self,
        num_steps: int,
        *,
        num_candidates: int = 1,
        level: float = 0.0,
        device: torch.device | None = None,
    ) -> Descent:
        schedule = FixedSteps(num_steps, self.step_size)
        return Descent(schedule, update=ClippedGradient(self.MAX_GRAD_NORM), noise=self.noise)
