"""Implicit Behavioral Cloning (Florence et al. 2021), an energy policy trained by contrast.

The energy is trained to separate the demonstrated chunk from uniform negatives (InfoNCE). Inference
minimises it without gradients, by resampling with decreasing noise (algorithm 1 of the paper).
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
from ebt_policy.policies.base import Policy
from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.chunk_transformer import ChunkTransformer
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.registry import POLICIES
from ebt_policy.policies.vision import VisionEncoder


@dataclass(frozen=True)
class ImplicitBCInference:
    """Derivative-free minimisation of the energy.

    Args:
        samples: M, the number of chunks in each round.
        steps: number of resampling rounds.
        noise_std: standard deviation of the noise in the first round, as a fraction of half the
            range of the demonstrated actions.
        noise_decay: factor that multiplies the standard deviation after each round.
    """

    samples: int = 256
    steps: int = 3
    noise_std: float = 0.33
    noise_decay: float = 0.5

    def __post_init__(self) -> None:
        if self.samples < 2 or self.steps < 1:
            raise ConfigError(
                "inference.samples must be at least 2 and inference.steps at least 1, got "
                f"{self.samples} and {self.steps}."
            )


@POLICIES.register("ibc")
class ImplicitBC(Policy):
    """Policy with an energy that InfoNCE trains and derivative-free optimisation minimises.

    Args:
        size: size of the transformer.
        negatives: number of negatives for each demonstration.
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
        # Negatives reach slightly beyond the limits, so that the minimum can lie at a limit.
        negatives = self._within_limits(torch.rand(shape, device=action.device) * 2.1 - 1.05)
        return {"negatives": negatives}

    def _within_limits(self, x: Tensor) -> Tensor:
        """Map [-1, 1] (..., A) to the limits of the demonstrations, in network units."""
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

        # Uniform samples from normal ones, because `draw_normal` takes a generator for each row.
        x = self._within_limits(2 * torch.special.ndtr(draw_normal(empty, generator)) - 1)
        x = constraints.apply(x)
        noise_std, energy = config.noise_std, self.net(context, x)
        for _ in range(config.steps):
            # Gumbel noise resamples by probability and depends on each row's generator alone.
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
