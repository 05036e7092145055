"""Transformers of sequences: what was observed, and a guess of what comes next at each place.

Shapes: B batch, S observed tokens, U units (guesses), M guesses a place, D width.

As in `transformer` there are two streams through the same blocks. The *observed* stream is a plain
causal transformer (the Llama recipe: RMSNorm, rotary positions, SwiGLU, no biases), computed once a
prediction; generation goes on from its keys and values. The *guess* stream has M guesses of the
token after each of the last U/M places. A guess sees the observed tokens up to its place and
itself, no later token and no other guess, so that each has an energy of its own. It starts from
what the observed stream made of its place, so that few blocks serve it. For text of which some
tokens are to be filled in there is one stream, in both directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ebt_policy.energy.attention import (
    Attention,
    GatedFeedForward,
    KeysValues,
    Turns,
    embed_level,
    turns,
)
from ebt_policy.energy.two_stream import TransformerConfig


class EncodedContext(NamedTuple):
    """What `observe` computes once.

    Attributes:
        keys_values: of each block.
        last: (B, S, D) what the last block made of the tokens that were new, normalised.
    """

    keys_values: list[KeysValues]
    last: Tensor

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.keys_values[0][0].shape[2]


class SequenceBlock(nn.Module):
    """Pre-norm block for both streams; guesses may be told a level (adaLN, Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads, bias=False)
        self.mlp = GatedFeedForward(width)

    def observe(
        self, x: Tensor, positions: Turns, past: KeysValues | None = None, causal: bool = True
    ) -> tuple[Tensor, KeysValues]:
        """Tokens (B, Q, D) -> (B, Q, D), and all keys and values."""
        seen, keys_values = self.attention.ordered(self.norm1(x), positions, past, causal)
        x = x + seen
        return x + self.mlp(self.norm2(x)), keys_values

    def guess(
        self, x: Tensor, positions: Turns, past: KeysValues, hidden: Tensor | None,
        change: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Guesses (B, U, D) -> (B, U, D); change (B, U, 6 D) scales and shifts what enters
        attention and feed-forward, and scales what they add."""
        if change is None:
            x = x + self.attention.apart(self.norm1(x), positions, past, hidden)
            return x + self.mlp(self.norm2(x))
        scale1, shift1, gate1, scale2, shift2, gate2 = change.chunk(6, dim=-1)
        seen = self.norm1(x) * (1 + scale1) + shift1
        x = x + (1 + gate1) * self.attention.apart(seen, positions, past, hidden)
        return x + (1 + gate2) * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def initialize(module: nn.Module, layers: int) -> None:
    """As GPT-2: what is added to the residual stream shrinks with the depth."""
    for name, matrix in module.named_parameters():
        if matrix.ndim == 2 and "level_in" not in name and "changes" not in name:
            added = name.endswith("out.weight")
            nn.init.normal_(matrix, std=0.02 / (2 * layers) ** 0.5 if added else 0.02)


def turns_of(start: int, stop: int, like: Tensor, head_width: int) -> Turns:
    """Those of the places from ``start`` to ``stop``, in the numbers of a tensor ``like``."""
    cos, sin = turns(torch.arange(start, stop, device=like.device), head_width)
    return cos.to(like.dtype), sin.to(like.dtype)


class BidirectionalTransformer(nn.Module):
    """One stream of the same blocks, in which all tokens see all.

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
        """(B, S, D) -> (B, S, D)."""
        at = turns_of(0, tokens.shape[1], tokens, self.head_width)
        for block in self.blocks:
            tokens, _ = block.observe(tokens, at, causal=False)  # type: ignore[operator]
        return self.norm(tokens)


class CausalTransformer(nn.Module):
    """A vector for each guess of what comes next in a sequence.

    Of a `BilinearEnergy` energy it is the field: the first gradient, at a guess that says nothing,
    is then the output of a plain transformer.

    Args:
        size: the size dial.
        guess_layers: blocks that guesses go through, the last ones; None for all.
        guesses: whether there is more than the observed stream.
        level: whether guesses are told a level.
    """

    def __init__(
        self,
        size: TransformerConfig,
        *,
        guess_layers: int | None = None,
        guesses: bool = True,
        level: bool = False,
    ) -> None:
        super().__init__()
        if guess_layers is not None and not 1 <= guess_layers <= size.layers:
            raise ValueError(
                f"guess_layers={guess_layers} must be between 1 and the {size.layers} layers."
            )
        width = size.width
        self.width, self.heads = width, size.heads
        self.guess_layers = guess_layers or size.layers
        self.blocks = nn.ModuleList(SequenceBlock(width, size.heads) for _ in range(size.layers))
        self.norm = nn.RMSNorm(width)
        if guesses:
            # Guesses are embedded as tokens are; at first what is known weighs as much.
            self.place = nn.Parameter(torch.full((width,), 0.02))
            self.guess_norm = nn.RMSNorm(width)
        self.level_in = self.changes = None
        if level:
            last = nn.Linear(width, 6 * width)
            self.level_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
            # One map for all blocks, and a table of each: six matrices a block would be half of it
            # (Chen et al. 2023, "PixArt").
            self.changes = nn.Parameter(torch.zeros(self.guess_layers, 6 * width))
            nn.init.normal_(last.weight, std=0.02)
            nn.init.zeros_(last.bias)
        initialize(self, size.layers)

    def observe(self, tokens: Tensor, before: EncodedContext | None = None) -> EncodedContext:
        """Tokens (B, S, D), after those that were observed before."""
        start = 0 if before is None else before.length
        at = turns_of(start, start + tokens.shape[1], tokens, self.width // self.heads)
        pasts = [None] * len(self.blocks) if before is None else before.keys_values
        h, keys_values = tokens, []
        for block, past in zip(self.blocks, pasts, strict=True):
            h, kept = block.observe(h, at, past)  # type: ignore[operator]
            keys_values.append(kept)
        return EncodedContext(keys_values, self.norm(h))

    def forward(
        self, observed: EncodedContext, guesses: Tensor, level: Tensor | None = None
    ) -> Tensor:
        """What the network makes of guesses: (B, U, D).

        Args:
            observed: what `observe` returned.
            guesses: (B, U, D), M adjacent ones for each of the last U/M places that were new.
            level: (B, U) in [0, 1], given exactly when the network is told it.
        """
        units, places = guesses.shape[1], observed.last.shape[1]
        if guesses.shape[-1] != self.width or units % places:
            raise ValueError(
                f"guesses must be (B, M * {places}, {self.width}), got {tuple(guesses.shape)}."
            )
        many, length = units // places, observed.length
        first = length - places + 1  # of what is guessed
        at = turns_of(first, length + 1, guesses, self.width // self.heads)
        hidden = None
        if places > 1:
            seen = torch.ones(places, length, dtype=torch.bool, device=guesses.device)
            hidden = ~seen.tril(length - places)
        place = self.place * observed.last
        if many > 1:
            at = at[0].repeat_interleave(many, dim=0), at[1].repeat_interleave(many, dim=0)
            place = place.repeat_interleave(many, dim=1)
            hidden = None if hidden is None else hidden.repeat_interleave(many, dim=0)
        told = embed_level(self.level_in, level, self.width)
        h = guesses + place
        last = self.guess_layers
        for i, block in enumerate(self.blocks[-last:]):
            past = observed.keys_values[len(self.blocks) - last + i]
            change = None if told is None or self.changes is None else told + self.changes[i]
            h = block.guess(h, at, past, hidden, change)  # type: ignore[operator]
        return self.guess_norm(h)
