"""The System 2 recipe of the EBT paper.

Shapes: B batch, U units, * the shape of a unit. Notation as in `ebt_policy.energy.objectives.base`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebt_policy.energy.candidate_space import EUCLIDEAN, CandidateSpace
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.objectives.base import require
from ebt_policy.energy.objectives.noisy_descent import NoisyDescent
from ebt_policy.energy.replay_buffer import ReplayBuffer
from ebt_policy.energy.result import DescentResult
from ebt_policy.energy.schedules import FixedSteps


class S2(NoisyDescent):
    """EBT's System 2 recipe (Gladstone et al. 2025, section 3): a landscape for many steps.

    The recipe has Langevin noise, a random number of steps, and a random step size for each unit.
    The loss is on the last step alone, with the graph cut before it. A replay buffer adds rows to
    the batch that continue earlier descents.

    Args:
        space, steps, step_size, step_size_range, noise, momentum: as in `NoisyDescent`.
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
        super().__init__(
            space, steps=steps, step_size=step_size, step_size_range=step_size_range,
            noise=noise, momentum=momentum,
        )  # fmt: skip
        require(replay >= 0, "replay", "0 or more rows", replay)
        require(replay_fraction > 0, "replay_fraction", "positive", replay_fraction)
        self.init_std = init_std
        self.replay = ReplayBuffer(replay) if replay else None
        self.replay_fraction = replay_fraction

    def _metrics(self, result: DescentResult) -> dict[str, Tensor]:
        metrics = super()._metrics(result)
        if self.replay is not None:
            metrics["candidate"] = result.candidate.detach()
        return metrics

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
