"""Mirror descent: candidates whose energy sees a function of them.

Shapes: B batch, U units, * the shape of a candidate, ** the shape that the energy sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.gradients import PlainGradient


class MirrorMap(NamedTuple):
    """A map from candidates to what the energy sees, and from gradients there back to candidates.

    Mirror descent (Nemirovski & Yudin 1983): the gradient at ``forward(x)`` moves x itself.
    Candidates may be logits, for instance, whose energy sees a distribution or its mean embedding.
    The potential is a part of the energy. Its gradient is x, which gives the descent a fixed point.

    Attributes:
        forward: candidates (B, U, *) -> (B, U, **).
        pullback: gradients there (B, U, **) -> (B, U, *).
        potential: candidates (B, U, *) -> (B, U), convex; of distributions the negative entropy.
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
    """Return gradient (B, U, *) and energy (B, U) at candidates x, as ``rule`` asks for them."""
    if mirror is None:
        return rule(energy, x, level, first=first)
    gradient, value = rule(energy, mirror.forward(x), level, first=first)
    return mirror.pullback(gradient) + x, value + mirror.potential(x)


def mirrored_energy(
    mirror: MirrorMap | None, energy: EnergyFn, x: Tensor, level: Tensor | None
) -> Tensor:
    """Return the energy (B, U) of candidates x, the mirror's potential included."""
    if mirror is None:
        return energy(x, level)
    return energy(mirror.forward(x), level) + mirror.potential(x)
