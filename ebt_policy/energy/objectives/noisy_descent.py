"""Base of recipes that train on the last of a random number of noisy steps.

Shapes: B batch, U units, * the shape of a unit. Notation as in `ebt_policy.energy.objectives.base`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ebt_policy.energy.candidate_space import CandidateSpace
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.gradients import PlainGradient
from ebt_policy.energy.normalization import UnitRootMeanSquare
from ebt_policy.energy.objectives.base import Objective, require
from ebt_policy.energy.result import DescentResult
from ebt_policy.energy.sampling import LangevinNoise, cosine_noise
from ebt_policy.energy.schedules import FixedSteps
from ebt_policy.energy.updates import GradientStep, NesterovMomentum


class NoisyDescent(Objective):
    """An objective with Langevin noise and a random number and size of steps.

    The graph is cut between steps, and the loss is the error of the last candidate.

    Args:
        space: space of the candidates.
        steps: inclusive range of N, the number of training steps.
        step_size: a, which is not learned.
        step_size_range: range [low, high] of a uniform factor that multiplies each unit's a.
        noise: first and last standard deviation of the Langevin noise (cosine in between).
        momentum: Nesterov's mu, in [0, 1).

    Attributes:
        update: update rule of the descent.
        normalization: normalisation of the candidates before each step; None for none.
        gradient: gradient of the descent in training.
    """

    update: GradientStep
    normalization: UnitRootMeanSquare | None = None
    gradient: PlainGradient = PlainGradient()

    def __init__(
        self,
        space: CandidateSpace,
        *,
        steps: tuple[int, int],
        step_size: float,
        step_size_range: tuple[float, float],
        noise: tuple[float, float],
        momentum: float,
    ) -> None:
        super().__init__(space)
        require(1 <= steps[0] <= steps[1], "steps", "an increasing range from 1 on", steps)
        require(step_size > 0, "step_size", "positive", step_size)
        low, high = step_size_range
        require(0 < low <= high, "step_size_range", "positive and increasing", step_size_range)
        require(min(noise) >= 0, "noise", "not negative", noise)
        require(0 <= momentum < 1, "momentum", "in [0, 1)", momentum)
        self.steps = (int(steps[0]), int(steps[1]))
        self.step_size, self.step_size_range = step_size, step_size_range
        self.noise = LangevinNoise(cosine_noise(*noise)) if max(noise) > 0 else None
        self.update = NesterovMomentum(momentum) if momentum else GradientStep()

    def sample_noise(self, target: Tensor) -> dict[str, Any]:
        low, high = self.steps
        steps = int(torch.randint(low, high + 1, ()))
        shortest, longest = self.step_size_range
        factor = torch.rand(target.shape[:2], device=target.device)
        zeros = self.space.zeros_like_candidate(target)
        shape = (zeros.shape[0], steps, *zeros.shape[1:])
        return {
            "init": self.space.initialize(target, self.init_std * torch.randn_like(zeros)),
            "steps": steps,
            "step_size": self.step_size * (shortest + (longest - shortest) * factor),
            "langevin_noise": None
            if self.noise is None
            else torch.randn(shape, device=zeros.device),
        }

    def forward(
        self, energy: EnergyFn, target: Tensor, noise: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        langevin = self.noise
        if langevin is not None:
            langevin = replace(langevin, predrawn=noise["langevin_noise"])
        descent = Descent(
            FixedSteps(noise["steps"], noise["step_size"]),
            gradient=self.gradient,
            update=self.update,
            normalization=self.normalization,
            noise=langevin,
            mirror=self.space.mirror,
            graph="last_step",
            final_energy=False,
        )
        result = descent(energy, noise["init"])
        return self.space.error(result.candidate, target).mean(), self._metrics(result)

    def _metrics(self, result: DescentResult) -> dict[str, Tensor]:
        """Return the metrics of a training step."""
        return {"grad_norm": result.grad_norms[-1].mean()}
