"""Conditional 1-D U-Net over the time axis of a chunk (Janner et al. 2022; Chi et al. 2023).

Residual blocks of convolution, group norm and Mish, modulated by the observation and the noise
level (FiLM, Perez et al. 2018). Shapes: B batch, U units, T horizon, A action dimension.
"""

from __future__ import annotations

from bisect import bisect
from typing import Self

import torch
from torch import Tensor, nn

from ebt_policy.energy.attention import sinusoidal
from ebt_policy.errors import ConfigError
from ebt_policy.policies.policy_shape import PolicyShape

GROUPS = 2
KERNEL = 5


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a convolution with group normalisation and Mish."""
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, KERNEL, padding=KERNEL // 2),
        nn.GroupNorm(GROUPS, out_channels),
        nn.Mish(),
    )


class FilmBlock(nn.Module):
    """Residual block of two convolutions; a condition scales and shifts the first result."""

    def __init__(self, in_channels: int, out_channels: int, condition: int) -> None:
        super().__init__()
        self.first, self.second = (
            conv_block(in_channels, out_channels),
            conv_block(out_channels, out_channels),
        )
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * out_channels))
        self.skip = (
            nn.Conv1d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition).unsqueeze(-1).chunk(2, dim=1)
        h = self.first(x) * (1 + scale) + shift
        return self.second(h) + self.skip(x)


class ConditionalUnet1d(nn.Module):
    """U-Net with a vector output for chunks and the interface of `ChunkTransformer`.

    Args:
        shape: dimensions; the horizon must be a multiple of 4, because it is halved twice.
        channels: channels at full resolution; the two lower resolutions have twice and four times
            as many.
    """

    def __init__(self, shape: PolicyShape, channels: int) -> None:
        super().__init__()
        if shape.horizon % 4:
            raise ConfigError(
                f"model.network=unet needs task.horizon divisible by 4, got {shape.horizon}."
            )
        self.channels = channels
        condition = 4 * channels + shape.n_obs_steps * shape.obs_dim
        widths = [channels, 2 * channels, 4 * channels]
        self.level_in = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.Mish(), nn.Linear(4 * channels, 4 * channels)
        )
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        in_channels = shape.action_dim
        for i, width in enumerate(widths):
            self.down.append(FilmBlock(in_channels, width, condition))
            last = i == len(widths) - 1
            self.shrink.append(nn.Identity() if last else nn.Conv1d(width, width, 3, 2, 1))
            in_channels = width
        self.middle = FilmBlock(in_channels, in_channels, condition)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.grow.append(nn.ConvTranspose1d(in_channels, in_channels, 4, 2, 1))
            self.up.append(FilmBlock(in_channels + width, width, condition))
            in_channels = width
        self.out = nn.Sequential(
            conv_block(in_channels, in_channels), nn.Conv1d(in_channels, shape.action_dim, 1)
        )

    @classmethod
    def with_num_parameters(cls, shape: PolicyShape, parameters: int) -> Self:
        """Build the U-Net whose number of parameters is nearest to ``parameters``."""

        def count(channels: int) -> int:
            with torch.device("meta"):
                return sum(p.numel() for p in cls(shape, channels).parameters())

        widths = range(2 * GROUPS, 4096, GROUPS)
        above = max(bisect(widths, parameters, key=count), 1)
        nearest = min(widths[above - 1 : above + 1], key=lambda c: abs(count(c) - parameters))
        return cls(shape, nearest)

    def encode(self, obs: Tensor) -> Tensor:
        """Flatten observations (B, To, Do) to (B, To * Do)."""
        return obs.flatten(1)

    def forward(self, context: Tensor, chunks: Tensor, level: Tensor) -> Tensor:
        """Return vectors (B, U, T, A) for chunks (B, U, T, A) at levels (B, U)."""
        units = chunks.shape[1]
        level_embedding = self.level_in(sinusoidal(level.flatten(), self.channels))
        condition = torch.cat([level_embedding, context.repeat_interleave(units, dim=0)], dim=-1)
        x, skips = chunks.flatten(0, 1).transpose(1, 2), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = block(x, condition)
            skips.append(x)
            x = shrink(x)
        x = self.middle(x, condition)
        skips.pop()
        for block, grow in zip(self.up, self.grow, strict=True):
            x = block(torch.cat([grow(x), skips.pop()], dim=1), condition)
        return self.out(x).transpose(1, 2).unflatten(0, (-1, units))
