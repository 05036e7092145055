"""Behaviour cloning: the transformer regresses the chunk in one pass (mean squared error)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.policies.base import Policy
from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.chunk_transformer import ChunkTransformer
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.registry import POLICIES
from ebt_policy.policies.vision import VisionEncoder


@POLICIES.register("bc")
class BehaviorCloning(Policy):
    """Policy that regresses the demonstrated chunk from an input of zeros.

    If the demonstrations have several modes, it predicts their average.

    Args:
        size: size of the transformer.
        actions_per_token: as in `ChunkTransformer`.
    """

    name = "bc"

    def __init__(
        self,
        shape: PolicyShape,
        normalizer: Normalizer,
        size: TransformerConfig,
        *,
        actions_per_token: int,
        vision: VisionEncoder | None = None,
    ) -> None:
        super().__init__(shape, normalizer, vision)
        self.net = ChunkTransformer(
            self.network_shape, size, actions_per_token, output="vector", level=False
        )

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _regress(self, obs: Tensor) -> Tensor:
        empty = obs.new_zeros(len(obs), 1, self.shape.horizon, self.shape.action_dim)
        return self.net(self.net.encode(obs), empty)[:, 0]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return (
            self._regress(self.observation_features(batch)) - batch["action"]
        ).square().mean(), {}

    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        used = torch.ones(len(obs), dtype=torch.long, device=obs.device)
        return Chunk(actions=self.constrain(self._regress(obs), constraints), steps_used=used)
