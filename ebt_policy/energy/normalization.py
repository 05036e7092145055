"""Normalisation of candidates before the steps of a descent.

Shapes: B batch, U units, * the shape of a unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class UnitRootMeanSquare:
    """Division of candidates by their root mean square, as in EBT-Policy (Davies et al. 2025).

    Args:
        over_batch: use the root mean square of the whole batch. The prediction of a row then
            depends on the other rows. For replications only.
        last_step_only: normalise only before the last step.
    """

    over_batch: bool = False
    last_step_only: bool = False

    def __call__(self, x: Tensor, *, last: bool) -> Tensor:
        """Return normalised candidates (B, U, *).

        Args:
            x: candidates (B, U, *).
            last: whether the next step is the last one.
        """
        if self.last_step_only and not last:
            return x
        dims = tuple(range(x.ndim)) if self.over_batch else tuple(range(2, x.ndim))
        return x / (x.square().mean(dim=dims, keepdim=True) + 1e-6).sqrt()
