"""Flow matching with a velocity that is the gradient of a scalar.

Shapes: B batch, U units, * the shape of a unit. Notation as in `ebt_policy.energy.objectives.base`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebt_policy.energy.candidate_space import EUCLIDEAN, CandidateSpace, corrupt, squared_error
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.gradients import SharedFirstGradient, expand_units
from ebt_policy.energy.objectives.base import Objective, require
from ebt_policy.energy.schedules import FixedSteps, LevelSchedule


class Flow(Objective):
    """An objective whose gradient field moves noise to data on straight paths.

        x = g y + (1 - g) n,   g ~ U[0, 1]
        loss = | -dE/dx(x, g) - (y - n) |^2

    This is flow matching (Lipman et al. 2023, Liu et al. 2023) with the velocity restricted to the
    gradient of a scalar. Training takes one full descent step from a demonstration corrupted to a
    random level. Inference takes N steps of size 1/N along the levels.

    Args:
        space: space of the candidates.
        condition_on_noise_level: whether the energy is conditioned on the level. False gives one
            landscape for all levels, which is a worse sampler and a better verifier.
        noise_samples_per_target: number of corrupted copies of each target, which share one
            encoding of the context.
    """

    def __init__(
        self,
        space: CandidateSpace = EUCLIDEAN,
        *,
        condition_on_noise_level: bool = True,
        noise_samples_per_target: int = 1,
    ) -> None:
        super().__init__(space)
        copies = noise_samples_per_target
        require(copies >= 1, "noise_samples_per_target", "at least 1", copies)
        self.level_conditioned = condition_on_noise_level  # type: ignore[misc]  # read-only
        self.noise_samples_per_target = copies

    def sample_noise(self, target: Tensor) -> dict[str, Any]:
        targets = target.repeat_interleave(self.noise_samples_per_target, dim=1)
        level = torch.rand(targets.shape[:2], device=targets.device, dtype=targets.dtype)
        return {"normal": torch.randn_like(targets), "level": level}

    def velocity_scale(self, level: Tensor) -> Tensor:
        """Return the scale (B, U) of the target velocity at levels (B, U), relative to y - n."""
        return torch.ones_like(level)

    def forward(
        self, energy: EnergyFn, target: Tensor, noise: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        normal, level = noise["normal"], noise["level"]
        target = target.repeat_interleave(self.noise_samples_per_target, dim=1)
        start = corrupt(target, normal, level)
        schedule = FixedSteps(1, 1.0)
        if self.level_conditioned:
            schedule = LevelSchedule(torch.stack([level, level]), 1.0)
        step = Descent(schedule, final_energy=False)(energy, start)
        velocity = (target - normal) * expand_units(self.velocity_scale(level), target)
        loss = squared_error(step.candidate - start, velocity).mean()
        return loss, {"grad_norm": step.grad_norms.mean()}

    def descent(
        self,
        num_steps: int,
        *,
        num_candidates: int = 1,
        level: float = 0.0,
        device: torch.device | None = None,
    ) -> Descent:
        if not self.level_conditioned:
            return Descent(FixedSteps(num_steps, (1.0 - level) / num_steps))
        schedule = LevelSchedule.uniform(num_steps, level, device)
        if level > 0:
            return Descent(schedule)
        # At level 0 a candidate is noise, independent of the demonstrations, and the field is
        # E[y | context] - x. So the first step needs one evaluation for all candidates of a unit.
        return Descent(schedule, SharedFirstGradient(num_candidates))

    def score(self, energy: EnergyFn, candidate: Tensor, level: float) -> Tensor:
        """Return the negative log-likelihood of candidates, up to a constant of the context.

        The learned field is the marginal velocity of the density p_g of corrupted demonstrations.
        On this path it is v = x/g + (1-g)/g grad log p_g (Lipman et al. 2023; Zheng et al. 2023,
        "Guided Flows"). Since v = -dE/dx, integration gives

            -log p_g(x) = g/(1-g) (E(x, g) + |x|^2 / 2g) + const.

        At x = g candidate this is the likelihood of the candidate under the demonstrations, blurred
        by normal noise of standard deviation (1-g)/g. At g = 1 the energy is -|x|^2 / 2, which does
        not depend on the demonstrations.
        """
        if not self.level_conditioned:
            return super().score(energy, candidate, level)
        levels = candidate.new_full(candidate.shape[:2], level)
        square = candidate.square().flatten(2).sum(-1)
        return level / (1 - level) * (energy(level * candidate, levels) + level * square / 2)
