"""Transformers for sequences: an observed stream, and candidates for the token after each position.

Shapes: B batch, S observed tokens, U units (candidates), M candidates per position, D width.

As in `two_stream`, two streams go through the same blocks. The *observed* stream is a plain causal
transformer (the Llama recipe: RMSNorm, rotary positions, SwiGLU, no biases). It is computed once
per prediction, and generation continues from its keys and values. The *candidate* stream has M
candidates for the token after each of the last U/M positions. A candidate attends to the observed
tokens up to its position and to itself, but not to later tokens or other candidates. So each
candidate has its own energy. It starts from the observed stream's output at its position, so a few
blocks suffice. Masked text uses a single bidirectional stream.
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
    """An encoded observed sequence.

    Attributes:
        keys_values: keys and values of all observed tokens, for each block.
        last: (B, S, D) normalised output of the last block for the newly observed tokens.
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
        """Return the output (B, Q, D) for tokens (B, Q, D), and all keys and values.

        Arguments as in `Attention.self_attention`.
        """
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
            rotary: rotary embedding of the candidates' positions.
            past: keys and values of the observed stream.
            hidden: as in `Attention.independent_queries`.
            modulation: (B, U, 6 D) scales and shifts of the inputs of attention and feed-forward,
                and scales of their outputs; None without levels.
        """
        if modulation is None:
            x = x + self.attention.independent_queries(self.norm1(x), rotary, past, hidden)
            return x + self.mlp(self.norm2(x))
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation.chunk(6, dim=-1)
        modulated = self.norm1(x) * (1 + scale1) + shift1
        x = x + (1 + gate1) * self.attention.independent_queries(modulated, rotary, past, hidden)
        return x + (1 + gate2) * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def initialize(module: nn.Module, layers: int) -> None:
    """Initialise matrices as in GPT-2: outputs to the residual stream shrink with the depth."""
    for name, matrix in module.named_parameters():
        if matrix.ndim == 2 and "level_in" not in name and "changes" not in name:
            added = name.endswith("out.weight")
            nn.init.normal_(matrix, std=0.02 / (2 * layers) ** 0.5 if added else 0.02)


def rotary_embedding_between(
    start: int, stop: int, like: Tensor, head_width: int
) -> RotaryEmbedding:
    """Return the rotary embedding of positions in [start, stop), with the dtype of ``like``."""
    cos, sin = rotary_embedding(torch.arange(start, stop, device=like.device), head_width)
    return cos.to(like.dtype), sin.to(like.dtype)


class BidirectionalTransformer(nn.Module):
    """A single stream of the same blocks, in which all tokens attend to each other.

    Args:
        size: width, heads and depth.
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
    """A transformer that returns a vector for each candidate for the next token.

    It serves as the field of a `BilinearEnergy`. The first update, at a candidate of zeros, is then
    the output of a plain transformer.

    Args:
        size: width, heads and depth.
        candidate_layers: number of blocks, counted from the last, that the candidate stream uses;
            None for all.
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
                f"candidate_layers={candidate_layers} must be between 1 and {size.layers}, the "
                "number of layers."
            )
        width = size.width
        self.width, self.heads = width, size.heads
        self.candidate_layers = candidate_layers or size.layers
        self.blocks = nn.ModuleList(SequenceBlock(width, size.heads) for _ in range(size.layers))
        self.norm = nn.RMSNorm(width)
        if candidates:
            # Scales the observed output at a position to the size of embedded tokens.
            self.place = nn.Parameter(torch.full((width,), 0.02))
            self.guess_norm = nn.RMSNorm(width)
        self.level_in = self.changes = None
        if level:
            last = nn.Linear(width, 6 * width)
            self.level_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
            # adaLN with one map for all blocks and a table for each (Chen et al. 2023, "PixArt").
            # Six matrices per block would add half as many parameters as a block has.
            self.changes = nn.Parameter(torch.zeros(self.candidate_layers, 6 * width))
            nn.init.normal_(last.weight, std=0.02)
            nn.init.zeros_(last.bias)
        initialize(self, size.layers)

    def observe(self, tokens: Tensor, before: EncodedContext | None = None) -> EncodedContext:
        """Encode tokens (B, S, D) that follow an earlier context, if there is one."""
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
            context: result of `observe`.
            candidates: (B, U, D), M adjacent candidates for each position of ``context.last``.
            level: (B, U) in [0, 1]; required if the network is conditioned on a level, else None.
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
