"""The two-stream transformer: a context encoded once, a cheap candidate stream read many times.

Shapes: B batch, U units, L tokens a unit, C features a token, K context tokens, D width.

A *unit* is what has one energy: an action chunk, a token, an image. M candidates for one
observation are M units of the same context. Units never see each other: they exchange information
through the context alone, so the gradient of the summed energy is the gradient of each.

Both streams go through the same blocks, as in a decoder with a cache: the context stream once a
prediction, and what is kept of it are its keys and values; the candidate stream at every step of a
descent, attending to these and to its own tokens. Sharing the weights learned better than a context
encoder with cross-attention of the same size (docs/experiments.md).
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
    """The size dial of the network.

    Args:
        width: D, a multiple of twice ``heads``.
        heads: attention heads.
        layers: depth, of both streams.
    """

    width: int
    heads: int
    layers: int

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.layers) < 1:
            raise ValueError(f"sizes must be positive, got {self}.")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of twice heads ({self.heads}); "
                "change size.width or size.heads."
            )


class Block(nn.Module):
    """Pre-norm transformer block, the same weights for both streams.

    The candidate stream is modulated (adaLN, Peebles & Xie 2023): a condition scales and shifts
    what enters attention and feed-forward, and scales what they add. It starts near no change.
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
    """Scalar energy or vector output for candidates given a context.

    Args:
        context_dim: features of a context token.
        context_tokens: K.
        token_dim: C, features of a candidate token.
        tokens: L.
        size: the size dial.
        output: ``"energy"`` gives one scalar a unit, ``"vector"`` a token's worth of features
            (noise, velocity or action) for the baselines without an energy.
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
        output: Literal["energy", "vector"],
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
        # Noise that is to be removed must reach the output, and tokens wider than the network
        # cannot pass through it: a share of the candidate, given by the condition, goes around.
        self.skip = nn.Linear(width, 1) if token_dim > width else None
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)
            nn.init.zeros_(self.skip.bias)

    def encode(self, context: Tensor) -> Context:
        """Encode context tokens (B, K, context_dim) for the candidate stream."""
        want = (len(self.context_position), self.context_in.in_features)
        if context.ndim != 3 or context.shape[1:] != want:
            raise ValueError(
                f"the context must be (B, {want[0]}, {want[1]}), got {tuple(context.shape)}."
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
            context: what `encode` returned.
            candidate: (B, U, L, C).
            level: (B, U) in [0, 1], 0 pure noise and 1 clean; given exactly when the network was
                built with ``level=True``.
        """
        # Fewer tokens or rows would be broadcast in silence.
        want = (len(self.candidate_position), self.candidate_in.in_features)
        if candidate.ndim != 4 or candidate.shape[2:] != want:
            raise ValueError(
                f"candidates must be (B, U, {want[0]}, {want[1]}), got {tuple(candidate.shape)}."
            )
        vector = self.vector_field(context, candidate, level)
        if self.output == "vector":
            return vector
        # E = <x, f(x)>: its gradient, f + J_f^T x, has a direct path to a vector output. It learned
        # faster than a linear read-out and than |x - f(x)|^2 / 2 (docs/experiments.md). The sign is
        # explained in `ebt_policy.energy.energy_function`.
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
        # Units of a row attend to the same context, and not to each other.
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
