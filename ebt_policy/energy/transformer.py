"""The two-stream transformer: a context encoded once, a cheap candidate stream read many times.

Shapes: B batch, U units, L tokens a unit, C features a token, K context tokens, D width.

A *unit* is what has one energy: an action chunk, a token, an image. M candidates for one
observation are M units of the same context. Units never see each other: they exchange information
through the context alone, so the gradient of the summed energy is the gradient of each.

The context stream costs one ordinary forward pass a prediction. The candidate stream is what
descent differentiates at every step (and training differentiates twice), so it is kept shallow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ebt_policy.energy.attention import CrossAttention, FeedForward, SelfAttention, sinusoidal


@dataclass(frozen=True)
class Width:
    """The size dial of the network.

    Args:
        width: D, a multiple of ``heads``.
        heads: attention heads.
        context_layers: depth of the context stream.
        candidate_layers: depth of the candidate stream.
    """

    width: int
    heads: int
    context_layers: int
    candidate_layers: int

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.candidate_layers) < 1 or self.context_layers < 0:
            raise ValueError(f"sizes must be positive, got {self}.")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of twice heads ({self.heads}); "
                "change size.width or size.heads."
            )


class ContextBlock(nn.Module):
    """Pre-norm transformer block of the context stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CandidateBlock(nn.Module):
    """Pre-norm block: a unit's tokens attend to each other, then to the context."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, U, L, D) -> (B, U, L, D)."""
        x = x + self.self_attention(self.norm1(x).flatten(0, 1)).view_as(x)
        # All units of a batch row share its context: one attention call serves them together.
        seen = self.cross_attention(self.norm2(x).flatten(1, 2), keys_values)
        x = x + seen.view_as(x)
        return x + self.mlp(self.norm3(x))


Context = list[tuple[Tensor, Tensor]]
"""Keys and values for each candidate block: what `encode` computes once a prediction."""


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
        level: whether the candidate stream is told the corruption level.
    """

    def __init__(
        self,
        context_dim: int,
        context_tokens: int,
        token_dim: int,
        tokens: int,
        size: Width,
        *,
        output: Literal["energy", "vector"],
        level: bool,
    ) -> None:
        super().__init__()
        width = size.width
        self.width, self.output = width, output
        self.context_in = nn.Linear(context_dim, width)
        self.context_position = nn.Parameter(torch.randn(context_tokens, width) * 0.02)
        self.context_blocks = nn.ModuleList(
            ContextBlock(width, size.heads) for _ in range(size.context_layers)
        )
        self.context_norm = nn.LayerNorm(width)
        self.candidate_in = nn.Linear(token_dim, width)
        self.candidate_position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.level_in = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            if level
            else None
        )
        self.blocks = nn.ModuleList(
            CandidateBlock(width, size.heads) for _ in range(size.candidate_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, token_dim)

    def encode(self, context: Tensor) -> Context:
        """Context tokens (B, K, context_dim) -> keys and values for every candidate block."""
        want = (len(self.context_position), self.context_in.in_features)
        if context.ndim != 3 or context.shape[1:] != want:
            raise ValueError(
                f"the context must be (B, {want[0]}, {want[1]}), got {tuple(context.shape)}."
            )
        h = self.context_in(context) + self.context_position
        for block in self.context_blocks:
            h = block(h)
        h = self.context_norm(h)
        return [cast(CandidateBlock, b).cross_attention.project(h) for b in self.blocks]

    def forward(self, context: Context, candidate: Tensor, level: Tensor | None = None) -> Tensor:
        """Energy (B, U), or vectors (B, U, L, C).

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
        if (level is None) != (self.level_in is None):
            raise ValueError(
                "this network "
                + ("takes no level." if self.level_in is None else "must be given a level.")
            )
        h = self.candidate_in(candidate) + self.candidate_position
        if self.level_in is not None and level is not None:
            h = h + self.level_in(sinusoidal(level, self.width)).unsqueeze(-2)
        for block, keys_values in zip(self.blocks, context, strict=True):
            h = block(h, keys_values)
        vector = self.head(self.norm(h))
        if self.output == "vector":
            return vector
        # E = <x, f(x)>: its gradient, f + J_f^T x, has a direct path to a vector output, which
        # learns faster than a linear read-out of the features (docs/experiments.md).
        return (candidate * vector).sum(dim=(-2, -1))
