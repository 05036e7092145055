"""The result of a descent.

Shapes: B batch, U units, M candidates of a unit, * the shape of a unit, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class DescentError(FloatingPointError):
    """An energy, a gradient or a candidate that became NaN or infinite."""


class StopReason(IntEnum):
    """The reason why the descent of a unit ended."""

    STEPS_DONE = 0
    GRADIENT_NORM = 1
    STRAIGHT_PATH = 2
    ENERGY_INCREASE = 3
    DEADLINE = 4


def is_moving(reason: Tensor) -> Tensor:
    """Return a mask (B, U) of the units that no rule has stopped, from their `StopReason`."""
    return reason == StopReason.STEPS_DONE.value  # an integer, because compiled code has no enums


@dataclass
class DescentResult:
    """Final candidates of a descent, their paths, and the reasons why they stopped.

    After `select`, every field but ``path`` describes only the selected candidate of each unit.

    Attributes:
        candidate: (B, U, *) final candidates.
        path: N + 1 tensors (B, U, *), from the initial to the final candidates. After a selection
            they still hold all M candidates of each unit. N is smaller than scheduled if the loop
            ended early.
        energies: (N + 1, B, U) energies before each step and at the end. The last row has the
            scores if a score is given, and is absent without a final energy.
        grad_norms: (N, B, U) Euclidean norms of each unit's gradient before clipping.
        steps_used: (B, U) number of steps that each unit took.
        energy_decrease: (B, U) first energy minus last energy. Energies at different levels are not
            comparable, so along levels it is the first-order sum_k <dE/dx_k, x_k - x_{k+1}>.
        reason: (B, U) int64, a `StopReason` for each unit.
        selected_indices: (B, U) index in ``path`` of each unit's selected candidate; None before a
            selection.
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
        """The path of each unit's selected candidate: N + 1 tensors (B, U, *)."""
        if self.selected_indices is None:
            return self.path
        indices = self.selected_indices
        rows = torch.arange(len(indices), device=indices.device).unsqueeze(1)
        return [x[rows, indices] for x in self.path]

    @property
    def has_final_energy(self) -> bool:
        """Whether the last row of ``energies`` belongs to the final candidates."""
        return len(self.energies) == len(self.grad_norms) + 1

    @property
    def diverged(self) -> Tensor:
        """Mask (B, U) of units that moved without decreasing their energy.

        The step size is too large for them. The mask is not meaningful along levels, where every
        step decreases the energy to first order.
        """
        # A single energy (one step without a final energy) gives no decrease.
        has_moved = (self.steps_used > 0) & (self.grad_norms[0] > 0) & (len(self.energies) > 1)
        return (self.energy_decrease <= 0) & has_moved


def check_finite(result: DescentResult) -> None:
    """Raise a DescentError that names the step if a result has NaN or infinite values."""
    final_tensors = (result.candidate, result.energies, result.grad_norms)
    # One reduction over all tensors waits for the GPU only once.
    if bool(torch.stack([x.isfinite().all() for x in final_tensors]).all()):
        return
    series = (result.path, *final_tensors[1:])
    first = min(k for rows in series for k, x in enumerate(rows) if not bool(x.isfinite().all()))
    raise DescentError(
        f"the descent reached NaN or Inf after {first} of {len(result.grad_norms)} steps; "
        "use a smaller step size or clip the gradient."
    )
