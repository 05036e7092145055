"""The System 1 recipe of the EBT paper.

Shapes: B batch, U units, * the shape of a unit. Notation as in `ebt_policy.energy.objectives.base`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ebt_policy.energy.candidate_space import EUCLIDEAN, CandidateSpace
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.gradients import PlainGradient, ZeroInitGradient, expand_units
from ebt_policy.energy.objectives.base import Objective, require
from ebt_policy.energy.schedules import FixedSteps, LevelSchedule


class S1(Objective):
    """EBT's System 1 recipe (Gladstone et al. 2025, "Energy-Based Transformers", section 3).

        x_0 = n;   x_{k+1} = x_k - a dE/dx(x_k)   (graph cut between steps)
        loss = 1/N sum_k | x_k - y |^2,   k = 1 .. N

    with a learned step size a. With a squared error and pure noise, the descent learns the
    conditional mean: it averages modes, and more steps do not help.

    Args:
        space: space of the candidates.
        steps: N, the number of steps.
        step_size: initial value of a.
        init_std: standard deviation of n; 0 gives all candidates the same start.
        step_conditioned: whether the energy is conditioned on the fraction of steps done.
        corrupted_init_fraction: fraction of the candidates that start from their target, corrupted
            to a random level, instead of noise. The landscape is then also learned near the data.
    """

    def __init__(
        self,
        space: CandidateSpace = EUCLIDEAN,
        *,
        steps: int = 2,
        step_size: float = 1.0,
        init_std: float = 1.0,
        step_conditioned: bool = False,
        corrupted_init_fraction: float = 0.0,
    ) -> None:
        super().__init__(space)
        fraction = corrupted_init_fraction
        require(steps >= 1, "steps", "at least 1", steps)
        require(step_size > 0, "step_size", "positive", step_size)
        require(init_std >= 0, "init_std", "0 or more", init_std)
        require(0 <= fraction <= 1, "corrupted_init_fraction", "in [0, 1]", fraction)
        self.steps, self.init_std, self.corrupted_init_fraction = steps, init_std, fraction
        self.level_conditioned = step_conditioned  # type: ignore[misc]  # read-only
        self.step_size = nn.Parameter(torch.tensor(float(step_size)))

    def sample_noise(self, target: Tensor) -> dict[str, Any]:
        if not self.init_std and not self.corrupted_init_fraction:
            return {}  # forward() creates the zeros
        normal = torch.randn_like(self.space.zeros_like_candidate(target))
        init = self.space.initialize(target, self.init_std * normal)
        if self.corrupted_init_fraction:
            level, uniform = torch.rand(2, *target.shape[:2], device=target.device)
            corrupted = self.space.initialize(target, normal, level)
            is_corrupted = expand_units(uniform, normal) < self.corrupted_init_fraction
            init = torch.where(is_corrupted, corrupted, init)
        return {"init": init}

    def forward(
        self, energy: EnergyFn, target: Tensor, noise: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        init = noise["init"] if noise else self.space.zeros_like_candidate(target)
        from_zeros = self.init_std == 0 and not self.corrupted_init_fraction
        descent = self._descent(self.steps, self.step_size, from_zeros)
        descent = replace(descent, graph="step", final_energy=False)
        path = descent(energy, init).path
        losses = torch.stack([self.space.error(x, target).mean() for x in path[1:]])
        metrics = {"last_step_loss": losses[-1].detach(), "step_size": self.step_size.detach()}
        return losses.mean(), metrics

    def descent(
        self,
        num_steps: int,
        *,
        num_candidates: int = 1,
        level: float = 0.0,
        device: torch.device | None = None,
    ) -> Descent:
        return self._descent(num_steps, self.step_size.detach(), self.init_std == 0)

    def score(self, energy: EnergyFn, candidate: Tensor, level: float) -> Tensor:
        """Return the energies of candidates, at the level of the last step if conditioned on it."""
        if not self.level_conditioned:
            return super().score(energy, candidate, level)
        return energy(candidate, candidate.new_full(candidate.shape[:2], 1 - 1 / self.steps))

    def _descent(self, num_steps: int, step_size: Tensor, from_zeros: bool) -> Descent:
        size = step_size.clamp(min=1e-4)
        schedule = FixedSteps(num_steps, size)
        if self.level_conditioned:
            # Steps beyond the N of training repeat the level of the last one.
            done = torch.arange(num_steps + 1, device=size.device) / self.steps
            schedule = LevelSchedule(done.clamp(max=(self.steps - 1) / self.steps), size)
        gradient = ZeroInitGradient() if from_zeros else PlainGradient()
        return Descent(schedule, gradient, mirror=self.space.mirror)
