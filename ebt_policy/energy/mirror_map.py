"""Mirror descent: the energy takes a function of a candidate instead of the candidate itself.

Shapes: B batch, U units, * the shape of a candidate, ** the shape of the energy's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.gradients import PlainGradient


class MirrorMap(NamedTuple):
    """A map from candidates to inputs of the energy, and a map from gradients back to candidates.

    In mirror descent (Nemirovski & Yudin 1983) the gradient at ``forward(x)`` moves x itself. For
    example, candidates are logits, and the energy takes the mean embedding of their distribution.
    The potential is a part of the energy. Its gradient is x, which gives the descent a fixed point.

    Attributes:
        forward: maps candidates (B, U, *) to inputs of the energy (B, U, **).
        pullback: maps gradients (B, U, **) to the space of candidates (B, U, *).
        potential: maps candidates (B, U, *) to a convex potential (B, U). For distributions it is
            the negative entropy.
    """

    forward: Callable[[Tensor], Tensor]
    pullback: Callable[[Tensor], Tensor]
    potential: Callable[[Tensor], Tensor]


def mirrored_gradient(
    mirror: MirrorMap | None,
    rule: PlainGradient,
    energy: EnergyFn,
    x: Tensor,
    level: Tensor | None,
    *,
    first: bool,
) -> tuple[Tensor, Tensor]:
    """Return gradient (B, U, *) and energy (B, U) at candidates x, computed by ``rule``."""
    if mirror is None:
        return rule(energy, x, level, first=first)
    gradient, value = rule(energy, mirror.forward(x), level, first=first)
    return mirror.pullback(gradient) + x, value + mirror.potential(x)


def mirrored_energy(
    mirror: MirrorMap | None, energy: EnergyFn, x: Tensor, level: Tensor | None
) -> Tensor:
    """Return the energy (B, U) of candidates x, including the mirror's potential."""
    if mirror is None:
        return energy(x, level)
    return energy(mirror.forward(x), level) + mirror.potential(x)
