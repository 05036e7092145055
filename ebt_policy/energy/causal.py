"""Transformers of sequences: an observed stream, and candidates of the next token at each place.

Shapes: B batch, S observed tokens, U units (candidates), M candidates a place, D width.

As in `two_stream`, two streams go through the same blocks. The *observed* stream is a plain causal
transformer (the Llama recipe: RMSNorm, rotary positions, SwiGLU, no biases), computed once a
prediction; generation continues from its keys and values. The *candidate* stream has M candidates
of the token after each of the last U/M places. A candidate attends to the observed tokens up to its
place and to itself, to no later token and no other candidate, so each has an energy of its own. It
starts from the observed stream's output at its place, so a few blocks suffice. Masked text has one
bidirectional stream.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ebt_policy.energy.attention import (
    Attention,
    GatedFeedForward,
    KeysValues,
    RotaryEmbedding,
    embed_level,
    rotary_embedding,
)
from ebt_policy.energy.two_stream import TransformerConfig


class EncodedContext(NamedTuple):
    """An observed sequence, encoded once.

    Attributes:
        keys_values: of each block.
        last: (B, S, D) normalised output of the last block for the tokens that were new.
    """

    keys_values: list[KeysValues]
    last: Tensor

    @property
    def length(self) -> int:
        """Number of observed tokens."""
        return self.keys_values[0][0].shape[2]


class SequenceBlock(nn.Module):
    """Pre-norm block for both streams; a level modulates candidates (adaLN, Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads, bias=False)
        self.mlp = GatedFeedForward(width)

    def observe(
        self,
        x: Tensor,
        rotary: RotaryEmbedding,
        past: KeysValues | None = None,
        causal: bool = True,
    ) -> tuple[Tensor, KeysValues]:
        """Return the output (B, Q, D) for tokens (B, Q, D), and all keys and values."""
        output, keys_values = self.attention.self_attention(self.norm1(x), rotary, past, causal)
        x = x + output
        return x + self.mlp(self.norm2(x)), keys_values

    def refine(
        self,
        x: Tensor,
        rotary: RotaryEmbedding,
        past: KeysValues,
        hidden: Tensor | None,
        modulation: Tensor | None,
    ) -> Tensor:
        """Return the output (B, U, D) for candidates (B, U, D).

        Args:
            x: (B, U, D).
            rotary: of the candidates' positions.
            past: keys and values of the observed stream.
            hidden: as in `Attention.independent_queries`.
            modulation: (B, U, 6 D), which scales and shifts the input of attention and
                feed-forward, and scales their output; None without levels.
        """
        if modulation is None:
            x = x + self.attention.independent_queries(self.norm1(x), rotary, past, hidden)
            return x + self.mlp(self.norm2(x))
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation.chunk(6, dim=-1)
        modulated = self.norm1(x) * (1 + scale1) + shift1
        x = x + (1 + gate1) * self.attention.independent_queries(modulated, rotary, past, hidden)
        return x + (1 + gate2) * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def initialize(module: nn.Module, layers: int) -> None:
    """Initialise as GPT-2: what is added to the residual stream shrinks with the depth."""
    for name, matrix in module.named_parameters():
        if matrix.ndim == 2 and "level_in" not in name and "changes" not in name:
            added = name.endswith("out.weight")
            nn.init.normal_(matrix, std=0.02 / (2 * layers) ** 0.5 if added else 0.02)


def rotary_embedding_between(
    start: int, stop: int, like: Tensor, head_width: int
) -> RotaryEmbedding:
    """Return the rotary embedding of positions from ``start`` to ``stop``, typed like a tensor."""
    cos, sin = rotary_embedding(torch.arange(start, stop, device=like.device), head_width)
    return cos.to(like.dtype), sin.to(like.dtype)


class BidirectionalTransformer(nn.Module):
    """One stream of the same blocks, in which all tokens attend to all.

    Args:
        size: the size dial.
    """

    def __init__(self, size: TransformerConfig) -> None:
        super().__init__()
        self.width, self.head_width = size.width, size.width // size.heads
        self.blocks = nn.ModuleList(
            SequenceBlock(size.width, size.heads) for _ in range(size.layers)
        )
        self.norm = nn.RMSNorm(size.width)
        initialize(self, size.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the output (B, S, D) for tokens (B, S, D)."""
        rotary = rotary_embedding_between(0, tokens.shape[1], tokens, self.head_width)
        for block in self.blocks:
            tokens, _ = block.observe(tokens, rotary, causal=False)  # type: ignore[operator]
        return self.norm(tokens)


class CausalTransformer(nn.Module):
    """A transformer that gives a vector for each candidate of the next token.

    It is the field of a `BilinearEnergy`, so that the first gradient, at a candidate of zeros, is
    the output of a plain transformer.

    Args:
        size: the size dial.
        candidate_layers: blocks of the candidate stream, the last ones; None for all.
        candidates: whether there is a candidate stream.
        level: whether candidates are conditioned on a level.
    """

    def __init__(
        self,
        size: TransformerConfig,
        *,
        candidate_layers: int | None = None,
        candidates: bool = True,
        level: bool = False,
    ) -> None:
        super().__init__()
        if candidate_layers is not None and not 1 <= candidate_layers <= size.layers:
            raise ValueError(
                f"candidate_layers={candidate_layers} must be between 1 and the {size.layers} "
                "layers."
            )
        width = size.width
        self.width, self.heads = width, size.heads
        self.candidate_layers = candidate_layers or size.layers
        self.blocks = nn.ModuleList(SequenceBlock(width, size.heads) for _ in range(size.layers))
        self.norm = nn.RMSNorm(width)
        if candidates:
            # Candidates are embedded as tokens are; at first their place weighs as much.
            self.place = nn.Parameter(torch.full((width,), 0.02))
            self.guess_norm = nn.RMSNorm(width)
        self.level_in = self.changes = None
        if level:
            last = nn.Linear(width, 6 * width)
            self.level_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
            # adaLN with one map for all blocks and a table for each: six matrices a block would be
            # half of the parameters (Chen et al. 2023, "PixArt").
            self.changes = nn.Parameter(torch.zeros(self.candidate_layers, 6 * width))
            nn.init.normal_(last.weight, std=0.02)
            nn.init.zeros_(last.bias)
        initialize(self, size.layers)

    def observe(self, tokens: Tensor, before: EncodedContext | None = None) -> EncodedContext:
        """Encode tokens (B, S, D), after those that were observed before."""
        start = 0 if before is None else before.length
        stop = start + tokens.shape[1]
        rotary = rotary_embedding_between(start, stop, tokens, self.width // self.heads)
        pasts = [None] * len(self.blocks) if before is None else before.keys_values
        h, keys_values = tokens, []
        for block, past in zip(self.blocks, pasts, strict=True):
            h, block_keys_values = block.observe(h, rotary, past)  # type: ignore[operator]
            keys_values.append(block_keys_values)
        return EncodedContext(keys_values, self.norm(h))

    def forward(
        self, context: EncodedContext, candidates: Tensor, level: Tensor | None = None
    ) -> Tensor:
        """Return the output (B, U, D) for candidates.

        Args:
            context: what `observe` returned.
            candidates: (B, U, D), M adjacent ones for each of the last U/M places that were new.
            level: (B, U) in [0, 1], given exactly when the network is conditioned on it.
        """
        units, places = candidates.shape[1], context.last.shape[1]
        if candidates.shape[-1] != self.width or units % places:
            raise ValueError(
                f"candidates must be (B, M * {places}, {self.width}), "
                f"got {tuple(candidates.shape)}."
            )
        copies, length = units // places, context.length
        first = length - places + 1  # position of the first candidate
        head_width = self.width // self.heads
        rotary = rotary_embedding_between(first, length + 1, candidates, head_width)
        hidden = None
        if places > 1:
            ones = torch.ones(places, length, dtype=torch.bool, device=candidates.device)
            hidden = ~ones.tril(length - places)
        place = self.place * context.last
        if copies > 1:
            cos, sin = (x.repeat_interleave(copies, dim=0) for x in rotary)
            rotary = cos, sin
            place = place.repeat_interleave(copies, dim=1)
            hidden = None if hidden is None else hidden.repeat_interleave(copies, dim=0)
        embedded_level = embed_level(self.level_in, level, self.width)
        h = candidates + place
        last = self.candidate_layers
        for i, block in enumerate(self.blocks[-last:]):
            past = context.keys_values[len(self.blocks) - last + i]
            modulation = None
            if embedded_level is not None and self.changes is not None:
                modulation = embedded_level + self.changes[i]
            h = block.refine(h, rotary, past, hidden, modulation)  # type: ignore[operator]
        return self.guess_norm(h)
