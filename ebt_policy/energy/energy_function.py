"""What an energy is: its sign, its scale, and the two networks that stand where one does.

**Sign.** Lower is better, everywhere: descents subtract the gradient, and the best candidate has
the lowest energy. A network learns its field f, so the sign in front of <x, f(x)> is a convention
of its parametrisation and not of the energy:

- `TwoStreamTransformer` gives E = +<x, f(x)>: the field points where the energy rises, and a
  trained f(0) points away from the target.
- `BilinearEnergy` gives E = -<x, f(x)>: the field is the direct update, so that the first step from
  zero adds f(0), the output of a plain transformer.

**Scale.** Energies of different contexts or levels do not compare. Scores of finished candidates
for one context do (`Objective.score`); those of a level-conditioned landscape are negative
log-likelihoods in nats, up to a constant of the context.

Shapes: B batch, U units, * the shape of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

EnergyFn = Callable[[Tensor, Tensor | None], Tensor]
"""Energy of candidates (B, U, *) at levels (B, U) or None -> (B, U); units must be independent."""


@dataclass(frozen=True)
class BilinearEnergy:
    """The energy E(x) = -<x, f(x)>, low where a candidate agrees with the output of a network.

    Its gradient is -f(x) - J_f^T x. At x = 0 that is -f(0), which needs no backward pass.

    Attributes:
        field: candidates (B, U, *) and levels (B, U) or None -> f, (B, U, *).
    """

    field: Callable[[Tensor, Tensor | None], Tensor]

    def __call__(self, x: Tensor, level: Tensor | None) -> Tensor:
        return -(x * self.field(x, level)).flatten(2).sum(-1)


@dataclass(frozen=True)
class DirectUpdate:
    """A network that gives the update itself and stands where an energy does.

    Attributes:
        field: candidates (B, U, *) and levels (B, U) or None -> the update, (B, U, *).
    """

    field: Callable[[Tensor, Tensor | None], Tensor]

    def __call__(self, x: Tensor, level: Tensor | None) -> Tensor:
        """Return zeros (B, U): there is no energy."""
        return x.new_zeros(x.shape[:2])
