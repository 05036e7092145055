"""The System 2 recipe of the EBT paper.

Shapes: B batch, U units, * the shape of a unit. Notation as in `ebt_policy.energy.objectives.base`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ebt_policy.energy.candidate_space import EUCLIDEAN, CandidateSpace
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.objectives.base import Objective, require
from ebt_policy.energy.replay_buffer import ReplayBuffer
from ebt_policy.energy.sampling import LangevinNoise, cosine_noise
from ebt_policy.energy.schedules import FixedSteps
from ebt_policy.energy.updates import GradientStep, NesterovMomentum


class S2(Objective):
    """EBT's System 2 recipe (Gladstone et al. 2025, section 3): a landscape for many steps.

    The recipe has Langevin noise, a random number of steps, and a random step size for each unit.
    The loss is on the last step alone, with the graph cut before it. A replay buffer adds rows to
    the batch that continue earlier descents.

    Args:
        space: space of the candidates.
        steps: inclusive range of N, the number of steps.
        step_size: a, which is not learned.
        step_size_range: range [low, high] of a uniform factor that multiplies each unit's a.
        noise: first and last standard deviation of the Langevin noise (cosine in between).
        momentum: Nesterov's mu, in [0, 1).
        replay: number of rows in the replay buffer; 0 for no buffer.
        replay_fraction: number of replayed rows as a fraction of the batch.
        init_std: standard deviation of the initial candidates.
    """

    def __init__(
        self,
        space: CandidateSpace = EUCLIDEAN,
        *,
        steps: tuple[int, int] = (2, 3),
        step_size: float = 1.0,
        step_size_range: tuple[float, float] = (0.5, 2.0),
        noise: tuple[float, float] = (0.2, 0.002),
        momentum: float = 0.0,
        replay: int = 192,
        replay_fraction: float = 0.5,
        init_std: float = 1.0,
    ) -> None:
        super().__init__(space)
        require(1 <= steps[0] <= steps[1], "steps", "an increasing range from 1 on", steps)
        require(step_size > 0, "step_size", "positive", step_size)
        low, high = step_size_range
        require(0 < low <= high, "step_size_range", "positive and increasing", step_size_range)
        require(min(noise) >= 0, "noise", "not negative", noise)
        require(0 <= momentum < 1, "momentum", "in [0, 1)", momentum)
        require(replay >= 0, "replay", "0 or more rows", replay)
        require(replay_fraction > 0, "replay_fraction", "positive", replay_fraction)
        self.steps = (int(steps[0]), int(steps[1]))
        self.step_size, self.step_size_range = step_size, step_size_range
        self.noise = LangevinNoise(cosine_noise(*noise)) if max(noise) > 0 else None
        self.update = NesterovMomentum(momentum) if momentum else GradientStep()
        self.init_std = init_std
        self.replay = ReplayBuffer(replay) if replay else None
        self.replay_fraction = replay_fraction

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
            update=self.update,
            noise=langevin,
            mirror=self.space.mirror,
            detach_between_steps=True,
            final_energy=False,
        )
        result = descent(energy, noise["init"])
        metrics = {"grad_norm": result.grad_norms[-1].mean()}
        if self.replay is not None:
            metrics["candidate"] = result.candidate.detach()
        return self.space.error(result.candidate, target).mean(), metrics

    def descent(
        self,
        num_steps: int,
        *,
        num_candidates: int = 1,
        level: float = 0.0,
        device: torch.device | None = None,
    ) -> Descent:
        schedule = FixedSteps(num_steps, self.step_size)
        return Descent(schedule, update=self.update, noise=self.noise, mirror=self.space.mirror)
