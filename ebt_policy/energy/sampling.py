"""Random numbers of a descent: seeded the same on every device, row by row if asked.

Shapes: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
"""Of a whole batch, or a list with one for each of its rows; None is torch's global one."""


def cosine_noise(start: float, end: float) -> Callable[[int, int], float]:
    """Langevin standard deviation falling from ``start`` to ``end`` along half a cosine."""

    def sigma(step: int, steps: int) -> float:
        progress = step / max(steps - 1, 1)
        return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return sigma


def draw_normal(like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise of the shape of ``like`` (B, ...); a list has a generator for each row.

    Row generators make the noise of a row independent of the batch it happens to be in. Noise is
    drawn on the generator's own device and moved, so a seed means the same on every device.

    Raises:
        ValueError: for a list of generators that is not one a row.
    """
    if isinstance(generator, Sequence):
        if len(generator) != len(like):
            raise ValueError(f"{len(generator)} generators for a batch of {len(like)} rows.")
        rows = [draw_normal(row, g) for row, g in zip(like, generator, strict=True)]
        return torch.stack(rows)
    device = generator.device if generator is not None else like.device
    noise = torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype)
    return noise.to(like.device)
