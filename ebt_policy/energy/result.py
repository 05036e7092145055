"""What a descent returns.

Shapes: B batch, U units, M candidates of a unit, * the shape of a unit, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class DescentError(FloatingPointError):
    """The energy, its gradient or the candidate became NaN or infinite."""


class StopReason(IntEnum):
    """Why the descent of a unit ended."""

    STEPS_DONE = 0
    GRADIENT_NORM = 1
    STRAIGHT_PATH = 2
    ENERGY_INCREASE = 3
    DEADLINE = 4


def is_moving(reason: Tensor) -> Tensor:
    """Return which units (B, U) no rule has stopped, from their `StopReason` so far."""
    return reason == StopReason.STEPS_DONE.value  # compiled code knows no enums


@dataclass
class DescentResult:
    """Where each unit ended, the path to it, and why it ended.

    After `select`, all but ``path`` are those of the selected candidate of each unit.

    Attributes:
        candidate: (B, U, *), where each unit ended.
        path: N + 1 candidates, from the initial one to the last (all M of them, if several); N
            counts the steps of the loop, fewer than scheduled when it ended early.
        energies: (N + 1, B, U), before each step and at the end (the score, if one is given);
            without a final energy the last row is absent.
        grad_norms: (N, B, U), Euclidean norm of each unit's gradient before clipping.
        steps_used: (B, U), steps that each unit really took.
        energy_decrease: (B, U), first energy minus last. Energies at different levels do not
            compare, so along levels it is to first order sum_k <dE/dx_k, x_k - x_{k+1}>.
        reason: (B, U) int64, a `StopReason` for each unit.
        selected_indices: (B, U), which of the candidates in ``path`` each unit ended as; None
            before a selection.
    """

    candidate: Tensor
    path: list[Tensor]
    energies: Tensor
    grad_norms: Tensor
    steps_used: Tensor
    energy_decrease: Tensor
    reason: Tensor
    selected_indices: Tensor | None = None

    @property
    def selected_path(self) -> list[Tensor]:
        """The path of each unit's own candidate: (B, U, *) each."""
        if self.selected_indices is None:
            return self.path
        indices = self.selected_indices
        rows = torch.arange(len(indices), device=indices.device).unsqueeze(1)
        return [x[rows, indices] for x in self.path]

    @property
    def has_final_energy(self) -> bool:
        """Whether ``energies`` ends with the finished candidates'."""
        return len(self.energies) == len(self.grad_norms) + 1

    @property
    def diverged(self) -> Tensor:
        """Units (B, U) that moved and did not go down: the step size is too large for them.

        Not meaningful along levels: to first order every step goes down.
        """
        # A single energy (one step without a final energy) has no difference.
        has_moved = (self.steps_used > 0) & (self.grad_norms[0] > 0) & (len(self.energies) > 1)
        return (self.energy_decrease <= 0) & has_moved


def check_finite(result: DescentResult) -> None:
    """Raise DescentError, naming the step, if anything in a result is NaN or infinite."""
    final_tensors = (result.candidate, result.energies, result.grad_norms)
    # One reduction over all of them, so that a GPU is waited for once.
    if bool(torch.stack([x.isfinite().all() for x in final_tensors]).all()):
        return
    series = (result.path, *final_tensors[1:])
    first = min(k for rows in series for k, x in enumerate(rows) if not bool(x.isfinite().all()))
    raise DescentError(
        f"the descent met NaN or Inf after {first} of {len(result.grad_norms)} steps; "
        "use a smaller step size or clip the gradient."
    )
