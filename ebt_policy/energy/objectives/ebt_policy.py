"""The recipe of EBT-Policy (Davies et al. 2025, arXiv 2510.27545) for action chunks.

Shapes: B batch, U units, * the shape of a unit. Notation as in `ebt_policy.energy.objectives.base`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ebt_policy.energy.candidate_space import EUCLIDEAN, CandidateSpace
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.gradients import CompiledGradient
from ebt_policy.energy.normalization import UnitRootMeanSquare
from ebt_policy.energy.objectives.base import require
from ebt_policy.energy.objectives.noisy_descent import NoisyDescent
from ebt_policy.energy.result import DescentResult
from ebt_policy.energy.schedules import FixedSteps
from ebt_policy.energy.updates import EnergyScaledStep


class EBTPolicy(NoisyDescent):
    """The published recipe: many random steps from noise, with a loss on the last one.

        x_{k+1} = x_k - a exp(E(x_k)) / temperature dE/dx(x_k)

    A candidate is normalised to unit root mean square, then Langevin noise is added, then it takes
    a step with Nesterov's momentum. The energy in the step size is not detached. In training, the
    graph is cut between steps, and the number and the size of the steps are random. At inference
    there is no noise, and a candidate can stop where the gradient is small (`stop_grad_norm`).

    Args:
        space, steps, step_size, step_size_range, noise, momentum: as in `NoisyDescent`.
        temperature: divides the step size.
        normalization: ``sample`` before each step, as in the paper; ``last_step`` only;
            ``released_code`` (over the whole batch, before the last step), where a row depends on
            the others; or ``none``.
    """

    def __init__(
        self,
        space: CandidateSpace = EUCLIDEAN,
        *,
        steps: tuple[int, int] = (6, 10),
        step_size: float = 1000.0,
        step_size_range: tuple[float, float] = (2 / 3, 3 / 2),
        temperature: float = 9.0,
        noise: tuple[float, float] = (0.2, 0.002),
        momentum: float = 0.9,
        normalization: Literal["sample", "last_step", "released_code", "none"] = "sample",
    ) -> None:
        super().__init__(
            space, steps=steps, step_size=step_size, step_size_range=step_size_range,
            noise=noise, momentum=momentum,
        )  # fmt: skip
        require(temperature > 0, "temperature", "positive", temperature)
        kinds = {
            "sample": UnitRootMeanSquare(),
            "last_step": UnitRootMeanSquare(last_step_only=True),
            "released_code": UnitRootMeanSquare(over_batch=True, last_step_only=True),
            "none": None,
        }
        require(normalization in kinds, "normalization", " or ".join(kinds), normalization)
        self.update = EnergyScaledStep(self.update, temperature)
        self.normalization = kinds[normalization]

    def score(self, energy: EnergyFn, candidate: Tensor, level: float) -> Tensor:
        """Return the energies of the normalised candidates, as the energy is trained on them."""
        if self.normalization is not None:
            candidate = self.normalization(candidate, last=True)
        return super().score(energy, candidate, level)

    def compile_steps(self) -> bool:
        """Compile one step instead of all: each number of steps would be a graph of its own."""
        self.gradient = CompiledGradient()
        return True

    def _metrics(self, result: DescentResult) -> dict[str, Tensor]:
        energies = result.energies[-1].detach()
        return {**super()._metrics(result), "energy": energies.mean()}

    def descent(
        self,
        num_steps: int,
        *,
        num_candidates: int = 1,
        level: float = 0.0,
        device: torch.device | None = None,
    ) -> Descent:
        return Descent(
            FixedSteps(num_steps, self.step_size),
            update=self.update,
            normalization=self.normalization,
            mirror=self.space.mirror,
        )
