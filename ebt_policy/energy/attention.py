"""Multi-head attention that can be differentiated twice where training needs it.

Shapes: B batch, Q tokens, K earlier tokens, D width, H heads.

Training an energy differentiates its input gradient, so attention is differentiated twice. Fused
kernels (flash, memory-efficient, CPU flash) have no second derivative, but PyTorch's "math" backend
has one. Inference needs only the first derivative and uses the fastest kernel.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def double_backward_attention(enabled: bool) -> AbstractContextManager[Any]:
    """Return a context manager in which attention has a second derivative, if ``enabled``."""
    return sdpa_kernel(SDPBackend.MATH) if enabled else nullcontext()


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split the width into heads: (..., L, D) -> (..., H, L, D/H)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """Merge the heads into the width: (..., H, L, D/H) -> (..., L, D)."""
    return x.transpose(-3, -2).flatten(-2)


KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (B, H, K, D/H)."""

RotaryEmbedding = tuple[Tensor, Tensor]
"""Cosines and sines of positions, each (Q, D/H/2)."""


def rotary_embedding(positions: Tensor, head_width: int) -> RotaryEmbedding:
    """Return the rotary embedding of positions (Q,) (Su et al. 2021, "RoFormer")."""
    angles = _angles(positions.float(), head_width // 2)
    return angles.cos(), angles.sin()


def apply_rotary_embedding(x: Tensor, rotary: RotaryEmbedding) -> Tensor:
    """Rotate the two halves of x (..., Q, D/H) against each other."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Softmax attention of tokens to each other and to earlier tokens (Vaswani et al. 2017).

    Args:
        width: D.
        heads: H, a divisor of D.
        bias: whether its linear maps have a bias.
    """

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def _project(self, x: Tensor, rotary: RotaryEmbedding | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        if rotary is not None:
            q, k = apply_rotary_embedding(q, rotary), apply_rotary_embedding(k, rotary)
        return q, k, v

    def self_attention(
        self,
        x: Tensor,
        rotary: RotaryEmbedding,
        past: KeysValues | None = None,
        causal: bool = True,
    ) -> tuple[Tensor, KeysValues]:
        """Let tokens x (B, Q, D) of a sequence attend to each other and to the past.

        Args:
            x: (B, Q, D).
            rotary: rotary embedding of the positions of x.
            past: keys and values of earlier tokens; None without earlier tokens.
            causal: whether each token attends only to itself and earlier tokens; always so with
                ``past``.

        Returns:
            Output (B, Q, D), and the keys and values of all tokens.
        """
        q, k, v = self._project(x, rotary)
        mask = None
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            ones = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device)
            mask = ones.tril(k.shape[2] - q.shape[2])
        causal = causal and past is None
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(merge_heads(output)), (k, v)

    def independent_queries(
        self, x: Tensor, rotary: RotaryEmbedding, past: KeysValues, hidden: Tensor | None
    ) -> Tensor:
        """Let each token of x (B, Q, D) attend to itself and the past, but not to the others.

        Args:
            x: (B, Q, D).
            rotary: rotary embedding of the positions of x.
            past: keys and values (B, H, K, D/H).
            hidden: (Q, K) bool, True if a token must not attend to a past token; None if all tokens
                attend to all past tokens.
        """
        q, k, v = self._project(x, rotary)
        scale = q.shape[-1] ** -0.5
        scores = (q @ past[0].transpose(-1, -2)) * scale
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        self_score = (q * k).sum(-1, keepdim=True) * scale
        weights = torch.cat([scores, self_score], dim=-1).softmax(dim=-1)
        output = weights[..., :-1] @ past[1] + weights[..., -1:] * v
        return self.out(merge_heads(output))

    def forward(self, x: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """Return the output (B, Q, D) for tokens x (B, Q, D), and their keys and values.

        x must have exactly one batch dimension. With two, the compiled CPU kernel of PyTorch 2.13
        gives wrong results without an error.
        """
        q, k, v = self._project(x, None)
        keys, values = k, v
        if past is not None:
            keys, values = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        output = F.scaled_dot_product_attention(q, keys, values)
        return self.out(merge_heads(output)), (k, v)


class FeedForward(nn.Sequential):
    """Two linear maps around a GELU, hidden width 4 D. A GELU keeps the energy smooth."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) with about as many weights as `FeedForward`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden_width = 8 * round(width / 3)
        self.gates = nn.Linear(width, 2 * hidden_width, bias=False)
        self.out = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gates(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


def sinusoidal(level: Tensor, width: int) -> Tensor:
    """Return Fourier features of a level in [0, 1]: (...) -> (..., width) (Vaswani et al. 2017).

    The level is scaled to [0, 1000], the range of the time steps of diffusion models.
    """
    angles = _angles(1000.0 * level, width // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def embed_level(net: nn.Module | None, level: Tensor | None, width: int) -> Tensor | None:
    """Return the embedding (..., D) of levels (...): ``net`` applied to `sinusoidal` features.

    Return None for a network without levels, whose ``net`` is None.

    Raises:
        ValueError: if a level is missing, or passed to a network without levels.
    """
    if (level is None) != (net is None):
        problem = "takes no level; pass None." if net is None else "needs a level, got None."
        raise ValueError(f"this network {problem}")
    return None if net is None or level is None else net(sinusoidal(level, width))


def _angles(positions: Tensor, count: int) -> Tensor:
    """Return positions (...) times frequencies from 1 down to 1 / 10,000: (..., count)."""
    exponents = torch.arange(count, device=positions.device, dtype=positions.dtype) / count
    return positions.unsqueeze(-1) * torch.exp(-9.2103 * exponents)  # 10,000 ** -exponent
