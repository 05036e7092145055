"""Multi-head attention that can be differentiated twice where training needs it.

Shapes: B batch, Q tokens, K tokens seen before, D width, H heads.

Training an energy differentiates its input gradient, so attention is differentiated twice. Fused
kernels (flash, memory-efficient, CPU flash) have no second derivative; PyTorch's "math" backend
has. Inference needs the first derivative alone and takes whichever kernel is fastest.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def double_backward_attention(needed: bool) -> AbstractContextManager[Any]:
    """Within this context attention has a second derivative, if ``needed``."""
    return sdpa_kernel(SDPBackend.MATH) if needed else nullcontext()


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., L, D) -> (..., H, L, D/H)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(..., H, L, D/H) -> (..., L, D)."""
    return x.transpose(-3, -2).flatten(-2)


KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (B, H, K, D/H)."""

Turns = tuple[Tensor, Tensor]
"""Cosines and sines of positions, each (Q, D/H/2)."""


def turns(positions: Tensor, head_width: int) -> Turns:
    """By how much queries and keys at positions (Q,) turn (Su et al. 2021, "RoFormer")."""
    angles = _angles(positions.float(), head_width // 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, by: Turns) -> Tensor:
    """Turn the two halves of x (..., Q, D/H) against each other."""
    cos, sin = by
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Softmax attention of tokens to each other and to tokens seen before (Vaswani et al. 2017).

    Args:
        width: D.
        heads: H, a divisor of D.
        bias: whether its maps have one.
    """

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def _project(self, x: Tensor, turns: Turns | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        return (q, k, v) if turns is None else (rotate(q, turns), rotate(k, turns), v)

    def ordered(
        self, x: Tensor, turns: Turns, past: KeysValues | None = None, causal: bool = True
    ) -> tuple[Tensor, KeysValues]:
        """Tokens x (B, Q, D) of a sequence see themselves, those before them (without ``causal``
        those behind, too), and the past -> (B, Q, D), and all keys and values."""
        q, k, v = self._project(x, turns)
        mask = None
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device)
            mask = later.tril(k.shape[2] - q.shape[2])
        causal = causal and past is None
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(merge_heads(seen)), (k, v)

    def apart(self, x: Tensor, turns: Turns, past: KeysValues, hidden: Tensor | None) -> Tensor:
        """Tokens x (B, Q, D) see themselves and the past, but not each other -> (B, Q, D).

        Args:
            hidden: (Q, K) True where a token does not see the past's.
        """
        q, k, v = self._project(x, turns)
        scale = q.shape[-1] ** -0.5
        scores = (q @ past[0].transpose(-1, -2)) * scale
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        own = (q * k).sum(-1, keepdim=True) * scale
        weights = torch.cat([scores, own], dim=-1).softmax(dim=-1)
        seen = weights[..., :-1] @ past[1] + weights[..., -1:] * v
        return self.out(merge_heads(seen))

    def forward(self, x: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """x (B, Q, D) and what was seen before -> (B, Q, D), and the keys and values of x.

        Exactly one batch dimension: with two, PyTorch 2.13's compiled CPU kernel is silently wrong.
        """
        q, k, v = self._project(x, None)
        keys, values = k, v
        if past is not None:
            keys, values = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        seen = F.scaled_dot_product_attention(q, keys, values)
        return self.out(merge_heads(seen)), (k, v)


class FeedForward(nn.Sequential):
    """Two linear maps around a GELU, hidden width 4 D; GELU because an energy must be smooth."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020), as wide inside as gives `FeedForward`'s number of weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * round(width / 3)
        self.gates = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gates(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


def sinusoidal(level: Tensor, width: int) -> Tensor:
    """Fourier features of a level in [0, 1]: (...) -> (..., width) (Vaswani et al. 2017).

    The level is scaled by 1000, the range that diffusion models feed to these features.
    """
    angles = _angles(1000.0 * level, width // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def embed_level(net: nn.Module | None, level: Tensor | None, width: int) -> Tensor | None:
    """What a network is told of levels (...): (..., D) of its `net` over `sinusoidal` features.

    Returns:
        None where it is told none, which is where `net` is None.

    Raises:
        ValueError: a level is missing, or given to a network without one.
    """
    if (level is None) != (net is None):
        need = "takes no level." if net is None else "must be given a level."
        raise ValueError(f"this network {need}")
    return None if net is None or level is None else net(sinusoidal(level, width))


def _angles(places: Tensor, count: int) -> Tensor:
    """Places (...) times frequencies from 1 down to 1 / 10,000: (..., count)."""
    exponents = torch.arange(count, device=places.device, dtype=places.dtype) / count
    return places.unsqueeze(-1) * torch.exp(-9.2103 * exponents)  # 10,000 ** -exponent
