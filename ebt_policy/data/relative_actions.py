"""The origin of relative actions: entries of the newest observation.

Shapes: B batch, To observations of dimension Do, A action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def origin_index(
    relative_to: Sequence[int | None] | None, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Return the indices (A,) for `action_origin`; None if all actions are absolute.

    Args:
        relative_to: as in `PolicyShape`: for each action dimension, the index of an observation
            entry in the same unit, or None for an absolute dimension.
        device: device of the indices.
    """
    if relative_to is None:
        return None
    return torch.tensor([-1 if i is None else i for i in relative_to], device=device)


def action_origin(obs: Tensor, index: Tensor | None) -> Tensor | float:
    """Return the origin (B, 1, A) of the actions of a chunk, or 0.0 if all are absolute.

    Args:
        obs: (B, To, Do), newest last.
        index: output of `origin_index`, on the same device.
    """
    if index is None:
        return 0.0
    # Index -1 reads the appended zero, for absolute dimensions.
    newest = torch.nn.functional.pad(obs[:, -1:], (0, 1))
    return newest[..., index]
