"""Random numbers of a descent. A seed gives the same numbers on every device.

Shapes: B batch, U units, * the shape of a unit, N steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class PredrawnNoise:
    """Standard normal numbers that replace a generator, in the order in which they are needed.

    Args:
        numbers: (n,).

    Attributes:
        used: number of values used so far.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self.used = numbers, 0

    def take(self, shape: Sequence[int]) -> Tensor:
        """Return the next numbers in a shape.

        Raises:
            ValueError: there are too few of them.
        """
        start, self.used = self.used, self.used + math.prod(shape)
        if self.used > len(self._numbers):
            raise ValueError(f"{self.used} numbers are needed, got {len(self._numbers)}.")
        return self._numbers[start : self.used].reshape(shape)


Generators = torch.Generator | Sequence[torch.Generator] | PredrawnNoise | None
"""A generator for a whole batch, a list with one per row, numbers drawn before, or None for torch's
global generator."""


def cosine_noise(start: float, end: float) -> Callable[[int, int], float]:
    """Return a schedule sigma(k, N) that falls from ``start`` to ``end`` along half a cosine."""

    def sigma(step: int, steps: int) -> float:
        progress = step / max(steps - 1, 1)
        return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return sigma


def draw_normal(like: Tensor, generator: Generators = None) -> Tensor:
    """Draw standard normal noise of the shape of ``like`` (B, ...).

    With one generator per row, the noise of a row does not depend on the rest of the batch. Noise
    is drawn on the generator's device and moved, so a seed gives the same noise on every device.

    Raises:
        ValueError: if the number of generators is not the number of rows.
    """
    if isinstance(generator, PredrawnNoise):
        return generator.take(like.shape)
    if isinstance(generator, Sequence):
        if len(generator) != len(like):
            raise ValueError(
                f"got {len(generator)} generators for a batch of {len(like)} rows; pass one per "
                "row."
            )
        rows = [draw_normal(row, g) for row, g in zip(like, generator, strict=True)]
        return torch.stack(rows)
    device = generator.device if generator is not None else like.device
    noise = torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype)
    return noise.to(like.device)


@dataclass(frozen=True, eq=False)
class LangevinNoise:
    """Normal noise that a descent adds to its candidates before each gradient.

    No noise is added after the last step.

    Args:
        sigma: standard deviation, or a schedule ``sigma(k, N)`` such as `cosine_noise`.
        predrawn: (B, N, U, *) standard normal noise drawn beforehand, for compiled or distributed
            training; None draws it at each step.
    """

    sigma: float | Callable[[int, int], float]
    predrawn: Tensor | None = None

    def __post_init__(self) -> None:
        if not (callable(self.sigma) or self.sigma >= 0):
            raise ValueError(f"sigma must not be negative, got {self.sigma}.")

    def __call__(self, x: Tensor, k: int, count: int, generator: Generators = None) -> Tensor:
        """Return the noise (B, U, *) of step k of N for candidates x.

        Raises:
            ValueError: if ``predrawn`` has another shape.
        """
        if self.predrawn is not None and self.predrawn.shape != (len(x), count, *x.shape[1:]):
            raise ValueError(
                f"the predrawn noise must be (B, {count}, U, ...), got "
                f"{tuple(self.predrawn.shape)}."
            )
        sigma = self.sigma(k, count) if callable(self.sigma) else self.sigma
        if sigma == 0:
            return torch.zeros_like(x)
        return sigma * (
            self.predrawn[:, k] if self.predrawn is not None else draw_normal(x, generator)
        )
