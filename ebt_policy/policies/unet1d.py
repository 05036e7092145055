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


def conv_block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(inside, outside, KERNEL, padding=KERNEL // 2),
        nn.GroupNorm(GROUPS, outside),
        nn.Mish(),
    )


class FilmBlock(nn.Module):
    """Two convolutions, scaled and shifted in between by the condition, and a residual path."""

    def __init__(self, inside: int, outside: int, condition: int) -> None:
        super().__init__()
        self.first, self.second = conv_block(inside, outside), conv_block(outside, outside)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outside))
        self.skip = nn.Conv1d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition).unsqueeze(-1).chunk(2, dim=1)
        h = self.first(x) * (1 + scale) + shift
        return self.second(h) + self.skip(x)


class ConditionalUnet1d(nn.Module):
    """Vector output for chunks, with the interface of `ChunkTransformer`.

    Args:
        shape: dimensions; the horizon must be a multiple of 4 (two halvings).
        channels: width of the first level; the others have twice and four times as many.
    """

    def __init__(self, shape: PolicyShape, channels: int) -> None:
        super().__init__()
        if shape.horizon % 4:
            raise ConfigError(f"the U-Net needs a horizon divisible by 4, got {shape.horizon}.")
        self.channels = channels
        condition = 4 * channels + shape.n_obs_steps * shape.obs_dim
        widths = [channels, 2 * channels, 4 * channels]
        self.level_in = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.Mish(), nn.Linear(4 * channels, 4 * channels)
        )
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        inside = shape.action_dim
        for i, width in enumerate(widths):
            self.down.append(FilmBlock(inside, width, condition))
            last = i == len(widths) - 1
            self.shrink.append(nn.Identity() if last else nn.Conv1d(width, width, 3, 2, 1))
            inside = width
        self.middle = FilmBlock(inside, inside, condition)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.grow.append(nn.ConvTranspose1d(inside, inside, 4, 2, 1))
            self.up.append(FilmBlock(inside + width, width, condition))
            inside = width
        self.out = nn.Sequential(conv_block(inside, inside), nn.Conv1d(inside, shape.action_dim, 1))

    @classmethod
    def of_size(cls, shape: PolicyShape, parameters: int) -> Self:
        """The width whose parameter count is nearest to a given one."""

        def count(channels: int) -> int:
            with torch.device("meta"):
                return sum(p.numel() for p in cls(shape, channels).parameters())

        widths = range(2 * GROUPS, 4096, GROUPS)
        above = max(bisect(widths, parameters, key=count), 1)
        nearest = min(widths[above - 1 : above + 1], key=lambda c: abs(count(c) - parameters))
        return cls(shape, nearest)

    def encode(self, obs: Tensor) -> Tensor:
        """Observations (B, To, Do) -> (B, To * Do)."""
        return obs.flatten(1)

    def forward(self, context: Tensor, chunks: Tensor, level: Tensor) -> Tensor:
        """Chunks (B, U, T, A), levels (B, U) -> (B, U, T, A)."""
        units = chunks.shape[1]
        told = self.level_in(sinusoidal(level.flatten(), self.channels))
        condition = torch.cat([told, context.repeat_interleave(units, dim=0)], dim=-1)
        x, passed = chunks.flatten(0, 1).transpose(1, 2), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = block(x, condition)
            passed.append(x)
            x = shrink(x)
        x = self.middle(x, condition)
        passed.pop()
        for block, grow in zip(self.up, self.grow, strict=True):
            x = block(torch.cat([grow(x), passed.pop()], dim=1), condition)
        return self.out(x).transpose(1, 2).unflatten(0, (-1, units))
