"""Flow matching with a vector output: the network of the energy policy, but without an energy.

Lipman et al. 2023, "Flow Matching for Generative Modeling"; Liu et al. 2023, "Flow Straight and
Fast". Shapes: B batch, T horizon, A action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.energy.candidate_space import corrupt
from ebt_policy.energy.proximal import end_variance, proximal_point
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.chunk_transformer import ChunkTransformer
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.registry import POLICIES
from ebt_policy.policies.sampling_policy import SamplingInference, SamplingPolicy
from ebt_policy.policies.vision import VisionEncoder


@dataclass(frozen=True)
class FlowInference(SamplingInference):
    """Inference options of flow matching, in addition to the options of `SamplingInference`.

    Args:
        steps: number of Euler steps.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"inference.steps must be at least 1, got {self.steps}.")


@POLICIES.register("flow_matching")
class FlowMatchingPolicy(SamplingPolicy):
    """Policy that integrates a learned velocity from noise n to a chunk y with Euler steps.

    At level g, a sample is x = g y + (1 - g) n. The network is trained to predict y - n.

    Args:
        size: size of the transformer.
        actions_per_token: as in `ChunkTransformer`.
        inference: options of `FlowInference`.
        teacher: as in `EnergyPolicy`.
    """

    name = "flow_matching"

    def __init__(
        self,
        shape: PolicyShape,
        normalizer: Normalizer,
        size: TransformerConfig,
        *,
        actions_per_token: int,
        inference: dict[str, Any],
        teacher: str | None = None,
        vision: VisionEncoder | None = None,
    ) -> None:
        super().__init__(shape, normalizer, vision)
        self.net = ChunkTransformer(
            self.network_shape, size, actions_per_token, output="vector", level=True
        )
        self.inference = options(FlowInference, inference, "model.inference")

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        action = batch["action"]
        level = torch.rand(len(action), 1, device=action.device)
        return {"normal": torch.randn_like(action), "level": level}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        action, normal = batch["action"].unsqueeze(1), batch["noise"]["normal"].unsqueeze(1)
        level = batch["noise"]["level"]
        context = self.net.encode(self.observation_features(batch))
        velocity = self.net(context, corrupt(action, normal, level), level)
        return (velocity - (action - normal)).square().mean(), {}

    def transport(self, features: Tensor, noise: Tensor) -> Tensor:
        """Return the chunks to which noise flows; both are (B, M, T, A) in network units."""
        return self.sample(self.net.encode(features), noise, NormalizedConstraints(), None)

    def sample(
        self, context: Any, noise: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Tensor:
        steps, x = self.inference.steps, noise
        cost = None if constraints.costs is None else constraints.costs.differentiable
        for k in range(steps):
            level = noise.new_full(noise.shape[:2], k / steps)
            velocity = self.net(context, x, level)
            if cost is not None:  # Move the end that the samples are heading for.
                end = proximal_point(cost, x + (1 - k / steps) * velocity, end_variance(level))
                velocity = (end - x) / (1 - k / steps)
            x = x + velocity / steps
            if constraints.prefix is not None:
                clean = constraints.prefix.unsqueeze(1)
                x = constraints.hold_prefix(x, corrupt(clean, noise, level + 1 / steps))
        return x

    def score_field(self, context: Any, chunks: Tensor, level: float) -> Tensor:
        """Return -grad_y log p_g(x) = g / (1 - g) (x - g v(x, g)) with x = g y (`Flow.score`)."""
        x = level * chunks
        velocity = self.net(context, x, x.new_full(x.shape[:2], level))
        return level / (1 - level) * (x - level * velocity)
