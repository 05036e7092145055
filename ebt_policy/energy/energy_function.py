"""The sign and the scale of energies, and two callables that are used as energies.

**Sign.** A lower energy is always better: a descent subtracts the gradient, and the best candidate
has the lowest energy. A network learns a field f(x). The sign in front of <x, f(x)> is only a
convention of its parametrisation:

- `TwoStreamTransformer` computes E = +<x, f(x)>. Its field points in the direction of increasing
  energy, so a trained f(0) points away from the target.
- `BilinearEnergy` computes E = -<x, f(x)>. Its field is the direct update, so the first step from
  zero adds f(0), the output of a plain transformer.

**Scale.** Energies of different contexts or levels are not comparable. Scores of finished
candidates of one context are comparable (`Objective.score`). A level-conditioned `Flow` scores them
by negative log-likelihood in nats, up to a constant that depends on the context.

Shapes: B batch, U units, * the shape of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

EnergyFn = Callable[[Tensor, Tensor | None], Tensor]
"""Maps candidates (B, U, *) and levels (B, U) or None to energies (B, U) of independent units."""


@dataclass(frozen=True, eq=False)
class BilinearEnergy:
    """The energy E(x) = -<x, f(x)>, which is low if a candidate agrees with a network's output.

    Its gradient is -f(x) - J_f^T x. At x = 0 it equals -f(0), which needs no backward pass.

    Attributes:
        field: maps candidates (B, U, *) and levels (B, U) or None to f(x), (B, U, *).
    """

    field: Callable[[Tensor, Tensor | None], Tensor]

    def __call__(self, x: Tensor, level: Tensor | None) -> Tensor:
        return -(x * self.field(x, level)).flatten(2).sum(-1)


@dataclass(frozen=True, eq=False)
class DirectUpdate:
    """A network that predicts the update directly and is used in place of an energy.

    Attributes:
        field: maps candidates (B, U, *) and levels (B, U) or None to updates (B, U, *).
    """

    field: Callable[[Tensor, Tensor | None], Tensor]

    def __call__(self, x: Tensor, level: Tensor | None) -> Tensor:
        """Return zeros (B, U), because there is no energy."""
        return x.new_zeros(x.shape[:2])
