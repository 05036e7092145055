"""Implicit Behavioral Cloning (Florence et al. 2021): the classical contrastive energy policy.

The energy learns to separate the demonstrated chunk from uniform counter-examples (InfoNCE). It is
minimised without its gradient, by resampling with shrinking noise (their algorithm 1).
Shapes: B batch, M samples, T horizon, A action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.energy.objectives import info_nce
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.policies.base import Chunk, Policy
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.chunk_transformer import ChunkTransformer
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.registry import POLICIES
from ebt_policy.policies.vision import VisionEncoder


@dataclass(frozen=True)
class ImplicitBCInference:
    """Derivative-free minimisation of the energy.

    Args:
        samples: M, chunks in each round.
        steps: rounds of resampling.
        noise_std: standard deviation of the noise in the first round, in units of half the range
            of the demonstrations' actions.
        noise_decay: factor on the standard deviation after each round.
    """

    samples: int = 256
    steps: int = 3
    noise_std: float = 0.33
    noise_decay: float = 0.5

    def __post_init__(self) -> None:
        if self.samples < 2 or self.steps < 1:
            raise ConfigError("inference.samples must be at least 2 and inference.steps 1.")


@POLICIES.register("ibc")
class ImplicitBC(Policy):
    """Energy of chunks by InfoNCE; inference by derivative-free optimisation.

    Args:
        negatives: counter-examples for each demonstration.
        actions_per_token: as in `ChunkTransformer`.
        inference: options of `ImplicitBCInference`.
    """

    name = "ibc"

    def __init__(
        self,
        shape: PolicyShape,
        normalizer: Normalizer,
        size: TransformerConfig,
        *,
        negatives: int,
        actions_per_token: int,
        inference: dict[str, Any],
        vision: VisionEncoder | None = None,
    ) -> None:
        super().__init__(shape, normalizer, vision)
        self.net = ChunkTransformer(
            self.network_shape, size, actions_per_token, output="energy", level=False
        )
        self.negatives = negatives
        if self.negatives < 1:
            raise ConfigError(f"model.negatives must be at least 1, got {self.negatives}.")
        self.inference = options(ImplicitBCInference, inference, "model.inference")

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        action = batch["action"].unsqueeze(1)
        shape = (len(action), self.negatives, *action.shape[2:])
        # A little beyond the limits, so that the minimum may lie at them.
        negatives = self._within_limits(torch.rand(shape, device=action.device) * 2.1 - 1.05)
        return {"negatives": negatives}

    def _within_limits(self, x: Tensor) -> Tensor:
        """Map [-1, 1] (..., A) to the limits of the demonstrations, in the network's units."""
        low, high = self.normalizer.box("action")
        return low + (x + 1) / 2 * (high - low)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        context = self.net.encode(self.observation_features(batch))
        chunks = torch.cat([batch["action"].unsqueeze(1), batch["noise"]["negatives"]], dim=1)
        energy = self.net(context, chunks)
        is_top1 = (energy.argmin(dim=1) == 0).float().mean()
        return info_nce(energy[:, :1], energy[:, 1:]), {"top1": is_top1.detach()}

    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        config = self.inference
        context = self.net.encode(obs)
        low, high = self.normalizer.box("action")
        half = (high - low) / 2
        rows = torch.arange(len(obs), device=obs.device).unsqueeze(1)
        empty = obs.new_empty(len(obs), config.samples, self.shape.horizon, self.shape.action_dim)

        # Uniform through the normal's distribution function: one way to draw row by row.
        x = self._within_limits(2 * torch.special.ndtr(draw_normal(empty, generator)) - 1)
        x = constraints.apply(x)
        noise_std, energy = config.noise_std, self.net(context, x)
        for _ in range(config.steps):
            # Resampling by probability, with Gumbel noise so that row generators decide.
            uniform = torch.special.ndtr(draw_normal(energy, generator)).clamp(1e-6, 1 - 1e-6)
            order = (-energy - (-uniform.log()).log()).argsort(dim=1, descending=True)
            parents = x[rows, order[:, : config.samples // 8 + 1]]
            repeats = -(-config.samples // parents.shape[1])
            x = parents.repeat(1, repeats, 1, 1)[:, : config.samples]
            x = x + noise_std * half * draw_normal(empty, generator)
            x = self.constrain(x, constraints)
            energy = self.net(context, x)
            noise_std *= config.noise_decay
        best = energy.argmin(dim=1)
        used = torch.full((len(obs),), config.steps, device=obs.device)
        return Chunk(x[rows[:, 0], best], used, energy=energy[rows[:, 0], best])
