"""Multi-head attention that can be differentiated twice where training needs it.

Shapes: B batch, Q tokens, K tokens seen before, D width, H heads.

Training an energy differentiates its input gradient, so attention is differentiated twice. Fused
kernels (flash, memory-efficient, CPU flash) have no second derivative; PyTorch's "math" backend
has. Inference needs the first derivative alone and takes whichever kernel is fastest.
"""

from __future__ import annotations

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


class Attention(nn.Module):
    """Softmax attention of tokens to each other and to tokens seen before (Vaswani et al. 2017).

    Args:
        width: D.
        heads: H, a divisor of D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """x (B, Q, D) and what was seen before -> (B, Q, D), and the keys and values of x.

        Exactly one batch dimension: with two, PyTorch 2.13's compiled CPU kernel is silently wrong.
        """
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        keys, values = k, v
        if past is not None:
            keys, values = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        seen = F.scaled_dot_product_attention(q, keys, values)
        return self.out(merge_heads(seen)), (k, v)


class FeedForward(nn.Sequential):
    """Two linear maps around a GELU, hidden width 4 D; GELU because an energy must be smooth."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def sinusoidal(level: Tensor, width: int) -> Tensor:
    """Fourier features of a level in [0, 1]: (...) -> (..., width) (Vaswani et al. 2017).

    The level is scaled by 1000, the range that diffusion models feed to these features.
    """
    half = width // 2
    exponents = torch.arange(half, device=level.device, dtype=level.dtype) / half
    angles = 1000.0 * level.unsqueeze(-1) * torch.exp(-9.2103 * exponents)  # 10,000 ** -exponent
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
