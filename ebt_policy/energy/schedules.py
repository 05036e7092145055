"""Schedules of a descent: the number of steps, their sizes, and the levels of the energy.

Shapes: B batch, U units, N steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ebt_policy.energy.gradients import to_autograd_tensor
from ebt_policy.energy.sampling import Generators, PredrawnNoise, draw_normal


class Steps(NamedTuple):
    """The steps of one descent.

    Attributes:
        sizes: (N, 1, 1) or (N, B, U) step sizes.
        levels: (N + 1,) or (N + 1, B, U) levels before each step and at the end; None without
            levels.
    """

    sizes: Tensor
    levels: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of steps, N."""
        return len(self.sizes)

    def level(self, k: int) -> Tensor | None:
        """Return the level after k steps, broadcastable to (B, U)."""
        return None if self.levels is None else self.levels[k]


class Schedule(ABC):
    """Base class of schedules.

    Attributes:
        has_levels: whether the energy is evaluated at levels. The path then ends at the last level.
    """

    has_levels: ClassVar[bool] = False

    @abstractmethod
    def steps(self, init: Tensor, generator: Generators = None) -> Steps:
        """Return the steps of a descent from candidates ``init`` (B, U, *)."""


@dataclass(frozen=True, eq=False)
class FixedSteps(Schedule):
    """A fixed number of steps, for an energy without levels.

    Args:
        count: N, the number of steps.
        size: step size: a number, a learned parameter, one per step (N,), or one per unit (B, U).
    """

    count: int
    size: float | Tensor

    def __post_init__(self) -> None:
        _require_count(self.count, self.count)
        _require_positive(self.size)

    def steps(self, init: Tensor, generator: Generators = None) -> Steps:
        return Steps(_expand_sizes(self.size, self.count, init))


@dataclass(frozen=True, eq=False)
class RandomSteps(Schedule):
    """A random number of steps, and a random size for each unit.

    Args:
        counts: inclusive range of N, which is drawn uniformly, once for the whole batch.
        size: step size, as in `FixedSteps`.
        size_range: range of a factor that multiplies each unit's step sizes, drawn from
            U[low, high] once per descent; None for no factor.
    """

    counts: tuple[int, int]
    size: float | Tensor
    size_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _require_count(*self.counts)
        _require_positive(self.size)
        if self.size_range is not None and not 0 < self.size_range[0] <= self.size_range[1]:
            raise ValueError(f"size_range must be positive and ordered, got {self.size_range}.")

    def steps(self, init: Tensor, generator: Generators = None) -> Steps:
        low, high = self.counts
        count = low
        if low < high:
            # With one generator per row, the generator of the first row draws the number of steps.
            first = generator[0] if isinstance(generator, Sequence) else generator
            if isinstance(first, PredrawnNoise):
                raise ValueError(f"the number of steps is random, {low} to {high}.")
            device = first.device if first is not None else "cpu"
            count = int(torch.randint(low, high + 1, (), generator=first, device=device))
        sizes = _expand_sizes(self.size, count, init)
        if self.size_range is not None:
            # The distribution function of a normal sample is uniform, and draw_normal draws by row.
            uniform = torch.special.ndtr(draw_normal(init.new_empty(init.shape[:2]), generator))
            shortest, longest = self.size_range
            sizes = sizes * (shortest + (longest - shortest) * uniform)
        return Steps(sizes)


@dataclass(frozen=True, eq=False)
class LevelSchedule(Schedule):
    """Steps along levels, for a level-conditioned energy.

    Args:
        levels: (N + 1,) or (N + 1, B, U) levels in [0, 1], 0 for noise and 1 for clean.
        size: step size, as in `FixedSteps`.
    """

    levels: Tensor
    size: float | Tensor

    has_levels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.levels) < 2:
            raise ValueError(f"a schedule needs at least 2 levels, got {len(self.levels)}.")
        _require_positive(self.size)

    @classmethod
    def uniform(cls, count: int, start: float = 0.0, device: torch.device | None = None) -> Self:
        """Return N equal steps along the straight path from level ``start`` to 1.

        >>> schedule = LevelSchedule.uniform(4, start=0.2)
        >>> [round(x, 2) for x in schedule.levels.tolist()], schedule.size
        ([0.2, 0.4, 0.6, 0.8, 1.0], 0.2)
        """
        _require_count(count, count)
        return cls(torch.linspace(start, 1.0, count + 1, device=device), (1.0 - start) / count)

    def steps(self, init: Tensor, generator: Generators = None) -> Steps:
        levels = to_autograd_tensor(self.levels).to(init)
        return Steps(_expand_sizes(self.size, len(levels) - 1, init), levels)


def _require_count(low: int, high: int) -> None:
    if not 1 <= low <= high:
        raise ValueError(
            f"the number of steps must be at least 1 and a range must not be empty, got "
            f"{low if low == high else (low, high)}."
        )


def _require_positive(size: float | Tensor) -> None:
    if not isinstance(size, Tensor) and not size > 0:
        raise ValueError(f"the step size must be positive, got {size}.")


def _expand_sizes(size: float | Tensor, count: int, init: Tensor) -> Tensor:
    """Return step sizes (N, 1, 1) or (N, B, U)."""
    if isinstance(size, Tensor):
        size = size.to(init)
    else:
        size = torch.full((), size, device=init.device, dtype=init.dtype)
    if size.ndim and size.shape not in ((count,), init.shape[:2]):
        shapes = f"a number or have shape ({count},) or {tuple(init.shape[:2])}"
        raise ValueError(f"the step size must be {shapes}, got {tuple(size.shape)}.")
    return size.view(-1, 1, 1) if size.ndim == 1 else size.expand(count, *init.shape[:2])
