"""The interface of objectives, which define how a landscape is trained and descended.

Notation: E the energy, y the target, n standard normal noise, x_k the candidate after k steps,
g a corruption level (0 noise, 1 clean). Shapes: B batch, U units, * the shape of a unit.

An objective draws all its randomness in `Objective.sample_noise`, before the compiled part and for
the global batch. So training gives the same results compiled or eager, and on one process or many.
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
    """Base class of objectives.

    Args:
        space: space of the candidates.

    Attributes:
        level_conditioned: whether the energy is conditioned on the corruption level.
        init_std: standard deviation of the initial candidates of a descent.
        replay: buffer of earlier predictions from which training continues, or None.
        replay_fraction: number of replayed rows as a fraction of the batch.
    """

    level_conditioned: ClassVar[bool] = False
    init_std: float = 1.0
    replay: ReplayBuffer | None = None
    replay_fraction: float = 0.0

    def __init__(self, space: CandidateSpace = EUCLIDEAN) -> None:
        super().__init__()
        self.space = space

    def compile_steps(self) -> bool:
        """Compile the steps of training one by one, and return True; False compiles them as one."""
        return False

    @abstractmethod
    def sample_noise(self, target: Tensor) -> dict[str, Any]:
        """Return all randomness of a training step on targets (B, U, *); tensors have B first."""

    @abstractmethod
    def forward(
        self, energy: EnergyFn, target: Tensor, noise: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a scalar loss and metrics, with a replay buffer also the final ``candidate``.

        Args:
            energy: maps candidates (B, U, *) and levels (B, U) or None to energies (B, U).
            target: (B, U, *).
            noise: result of `sample_noise` for the target.
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
        """Return the descent of the learned landscape at inference.

        Args:
            num_steps: N, the number of steps.
            num_candidates: M, the number of adjacent candidates of a unit.
            level: corruption level of the initial candidates, 0 for noise.
            device: device of the candidates, on which levels are created.
        """

    def score(self, energy: EnergyFn, candidate: Tensor, level: float) -> Tensor:
        """Return scores (B, U) that rank finished candidates (B, U, *) of one context.

        Lower is better.

        Args:
            energy: see `forward`.
            candidate: (B, U, *).
            level: corruption level in (0, 1) at which a level-conditioned landscape scores them.
        """
        return energy(candidate, None)


ObjectiveFactory = Callable[[CandidateSpace], Objective]
"""Builds an objective from the space of a model's candidates; for example, the class `Flow`."""


def require(condition: bool, option: str, expected: str, value: object) -> None:
    """Raise a ValueError that names an option of an objective, unless the condition holds."""
    if not condition:
        raise ValueError(f"objective.{option} must be {expected}, got {value}.")
