"""What an objective is: how a landscape is learned, and how it is descended.

Notation: E the energy, y the target, n standard normal noise, x_k the candidate after k steps,
g a corruption level with g = 1 clean. Shapes: B batch, U units, * the shape of a unit.

An objective draws all its randomness in `Objective.sample_noise`, before the compiled part and for
the whole batch, so that compiled equals eager and several processes equal one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebt_policy.energy.candidate_space import EUCLIDEAN, CandidateSpace
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.replay_buffer import ReplayBuffer


class Objective(nn.Module, ABC):
    """Base of all objectives.

    Args:
        space: of the candidates.

    Attributes:
        level_conditioned: whether the energy is conditioned on the corruption level.
        init_std: standard deviation of the candidates that a descent starts from.
        replay: earlier predictions to go on from, or None.
        replay_fraction: rows of a batch to replay, as a fraction of it.
    """

    level_conditioned: ClassVar[bool] = False
    init_std: float = 1.0
    replay: ReplayBuffer | None = None
    replay_fraction: float = 0.0

    def __init__(self, space: CandidateSpace = EUCLIDEAN) -> None:
        super().__init__()
        self.space = space

    @abstractmethod
    def sample_noise(self, target: Tensor) -> dict[str, Any]:
        """Return all randomness of a step for targets (B, U, *); tensors have B first."""

    @abstractmethod
    def forward(
        self, energy: EnergyFn, target: Tensor, noise: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return scalar loss and metrics; with a replay buffer these hold its new ``candidate``.

        Args:
            energy: candidates (B, U, *) and levels (B, U) or None -> energies (B, U).
            target: (B, U, *).
            noise: what `sample_noise` returned for the target.
        """

    @abstractmethod
    def descent(
        self,
        num_steps: int,
        *,
        num_candidates: int = 1,
        level: float = 0.0,
        device: torch.device | None = None,
    ) -> Descent:
        """Return the descent that the learned landscape needs at inference.

        Args:
            num_steps: N.
            num_candidates: M adjacent candidates of a unit.
            level: of corruption that candidates start from, 0 for noise.
            device: of the candidates, where levels are made.
        """

    def score(self, energy: EnergyFn, candidate: Tensor, level: float) -> Tensor:
        """Return the scores (B, U) by which finished candidates (B, U, *) of one context compare.

        Lower is better.

        Args:
            energy: see `forward`.
            candidate: (B, U, *).
            level: of corruption at which a level-conditioned landscape scores them, in (0, 1).
        """
        return energy(candidate, None)


ObjectiveFactory = Callable[[CandidateSpace], Objective]
"""Makes the objective of a model from the space of its candidates, such as `Flow` itself."""


def require(condition: bool, option: str, expected: str, value: object) -> None:
    """Raise ValueError that names an option of an objective, unless the condition holds."""
    if not condition:
        raise ValueError(f"objective.{option} must be {expected}, got {value}.")
