"""The two-stream transformer: a context that is encoded once, and a cheap candidate stream.

Shapes: B batch, U units, L tokens per unit, C features per token, K context tokens, D width.

A *unit* has one energy, for example an action chunk, a token or an image. M candidates for one
observation are M units of the same context. Units attend to the context but not to each other, so
the gradient of the summed energy is the gradient of each.

Both streams go through the same blocks, as in a decoder with a cache. The context stream runs once
per prediction and stores its keys and values. The candidate stream runs at every step of a descent
and attends to these and to its own tokens. Shared weights learned better than a context encoder
with cross-attention of the same size (docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebt_policy.energy.attention import Attention, FeedForward, KeysValues, embed_level


@dataclass(frozen=True)
class TransformerConfig:
    """The size of a transformer.

    Args:
        width: D, a multiple of twice ``heads``.
        heads: number of attention heads.
        layers: number of blocks, which both streams share.
    """

    width: int
    heads: int
    layers: int

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.layers) < 1:
            raise ValueError(f"width, heads and layers must be positive, got {self}.")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of twice heads ({self.heads}); "
                "change size.width or size.heads."
            )


class Block(nn.Module):
    """Pre-norm transformer block with the same weights for both streams.

    A condition modulates the candidate stream (adaLN, Peebles & Xie 2023). It scales and shifts the
    inputs of attention and feed-forward, and scales their outputs. At first it changes them little.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = FeedForward(width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.normal_(self.modulation.weight, std=0.02)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Tensor, past: KeysValues | None = None, condition: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Return the output (B, Q, D) for tokens x (B, Q, D), and their keys and values.

        Args:
            x: (B, Q, D).
            past: keys and values of the context.
            condition: (B, 1, D), which modulates the candidate stream; None for the context.
        """
        if condition is None:
            attended, keys_values = self.attention(self.norm1(x), past)
            x = x + attended
            return x + self.mlp(self.norm2(x)), keys_values
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        attended, keys_values = self.attention(self.norm1(x) * (1 + scale1) + shift1, past)
        x = x + (1 + gate1) * attended
        return x + (1 + gate2) * self.mlp(self.norm2(x) * (1 + scale2) + shift2), keys_values


class Context(NamedTuple):
    """An encoded context: keys and values of each block, and the pooled summary (B, D)."""

    keys_values: list[KeysValues]
    summary: Tensor


class TwoStreamTransformer(nn.Module):
    """A network that maps candidates and a context to energies or vectors.

    Args:
        context_dim: number of features of a context token.
        context_tokens: K.
        token_dim: C, number of features of a candidate token.
        tokens: L.
        size: width, heads and depth.
        output: ``"energy"`` returns one scalar per unit, <x, f(x)>. ``"mean"`` returns the mean of
            f(x), the energy of EBT-Policy. ``"vector"`` returns f(x), C features per token (noise,
            velocity or action), for baselines without an energy.
        level: whether the candidate stream is conditioned on the corruption level.
    """

    def __init__(
        self,
        context_dim: int,
        context_tokens: int,
        token_dim: int,
        tokens: int,
        size: TransformerConfig,
        *,
        output: Literal["energy", "mean", "vector"],
        level: bool,
    ) -> None:
        super().__init__()
        width = size.width
        self.width, self.output = width, output
        self.context_in = nn.Linear(context_dim, width)
        self.context_position = nn.Parameter(torch.randn(context_tokens, width) * 0.02)
        self.candidate_in = nn.Linear(token_dim, width)
        self.candidate_position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.level_in = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            if level
            else None
        )
        self.blocks = nn.ModuleList(Block(width, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, token_dim)
        # The noise to remove must reach the output, but tokens wider than the network do not fit
        # through it. So a share of the candidate, set by the condition, bypasses the network.
        self.skip = nn.Linear(width, 1) if token_dim > width else None
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)
            nn.init.zeros_(self.skip.bias)

    def encode(self, context: Tensor) -> Context:
        """Encode context tokens (B, K, context_dim) for the candidate stream."""
        want = (len(self.context_position), self.context_in.in_features)
        if context.ndim != 3 or context.shape[1:] != want:
            raise ValueError(
                f"the context must have shape (B, {want[0]}, {want[1]}), got "
                f"{tuple(context.shape)}."
            )
        h = self.context_in(context) + self.context_position
        keys_values: list[KeysValues] = []
        for block in self.blocks:
            h, block_keys_values = block(h)
            keys_values.append(block_keys_values)
        return Context(keys_values, h.mean(dim=1))

    def forward(self, context: Context, candidate: Tensor, level: Tensor | None = None) -> Tensor:
        """Return energies (B, U), or vectors (B, U, L, C).

        Args:
            context: result of `encode`.
            candidate: (B, U, L, C).
            level: (B, U) in [0, 1], 0 for pure noise and 1 for clean; required if the network was
                built with ``level=True``, else None.
        """
        # Without this check, fewer tokens would be broadcast silently.
        want = (len(self.candidate_position), self.candidate_in.in_features)
        if candidate.ndim != 4 or candidate.shape[2:] != want:
            raise ValueError(
                f"candidates must have shape (B, U, {want[0]}, {want[1]}), got "
                f"{tuple(candidate.shape)}."
            )
        vector = self.vector_field(context, candidate, level)
        if self.output == "vector":
            return vector
        if self.output == "mean":
            return vector.mean(dim=(-2, -1))
        # The gradient of E = <x, f(x)>, f + J_f^T x, has a direct path to a vector output. This
        # energy learned faster than a linear read-out and than |x - f(x)|^2 / 2
        # (docs/experiments.md). `ebt_policy.energy.energy_function` explains the sign.
        return (candidate * vector).sum(dim=(-2, -1))

    def vector_field(
        self, context: Context, candidate: Tensor, level: Tensor | None = None
    ) -> Tensor:
        """Return f (B, U, L, C) of E = <x, f(x)>; arguments as in `forward`."""
        (*_, h), condition = self._hidden(context, candidate, level)
        vector = self.head(self.norm(h))
        if self.skip is not None:
            vector = vector + self.skip(condition) * candidate.flatten(0, 1)
        return vector.unflatten(0, (-1, candidate.shape[1]))

    def features(self, context: Context, candidate: Tensor, level: Tensor | None = None) -> Tensor:
        """Return each block's output for candidates, averaged over tokens: (B, U, layers, D)."""
        hidden, _ = self._hidden(context, candidate, level)
        means = torch.stack([h.mean(dim=1) for h in hidden], dim=1)
        return means.unflatten(0, (-1, candidate.shape[1]))

    def _hidden(
        self, context: Context, candidate: Tensor, level: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """Return candidates (B * U, L, D) after each block, and the condition (B * U, 1, D)."""
        units = candidate.shape[1]
        condition = context.summary.unsqueeze(1).expand(-1, units, -1)
        embedded_level = embed_level(self.level_in, level, self.width)
        if embedded_level is not None:
            condition = condition + embedded_level
        condition = F.silu(condition).reshape(-1, 1, self.width)
        h = (self.candidate_in(candidate) + self.candidate_position).flatten(0, 1)
        hidden = []
        # Units of a row attend to the same context, but not to each other.
        for block, keys_values in zip(self.blocks, context.keys_values, strict=True):
            h, _ = block(h, _repeat(keys_values, units), condition)
            hidden.append(h)
        return hidden, condition


def _repeat(keys_values: KeysValues, units: int) -> KeysValues:
    """Repeat keys and values for the U units of each row: (B, ...) -> (B * U, ...)."""
    if units == 1:
        return keys_values
    keys, values = keys_values
    return keys.repeat_interleave(units, dim=0), values.repeat_interleave(units, dim=0)
