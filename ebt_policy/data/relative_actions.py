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
    """Return the entries (A,) of an observation that `action_origin` reads.

    Args:
        relative_to: A entries of an observation, in the units of the action; None for a number
            that stays absolute, None as a whole for absolute actions.
    """
    if relative_to is None:
        return None
    return torch.tensor([-1 if i is None else i for i in relative_to], device=device)


def action_origin(obs: Tensor, index: Tensor | None) -> Tensor | float:
    """Return where the actions of a chunk are measured from: (B, 1, A), or 0.0 if absolute.

    Args:
        obs: (B, To, Do), the newest last.
        index: what `origin_index` returned, on the same device.
    """
    if index is None:
        return 0.0
    # The last entry is a zero, for what stays absolute.
    newest = torch.nn.functional.pad(obs[:, -1:], (0, 1))
    return newest[..., index]
