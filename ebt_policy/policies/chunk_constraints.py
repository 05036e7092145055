"""What a predicted chunk of actions must satisfy: a committed prefix, the limits of a robot, time.

Shapes: B batch, T horizon, P committed actions, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChunkConstraints:
    """What a caller of `Policy.predict_chunk` demands of a chunk, in env units.

    Attributes:
        prefix: (B, P, A), the first P actions of the chunk, already committed (the first To - 1 of
            a chunk lie in the past). The policy predicts the rest conditioned on them if it was
            trained with ``task.max_prefix_len``; otherwise it only keeps them.
        warm_start: (B, T, A), an earlier plan for the same time. An `EnergyPolicy` starts from it
            (see `EnergyInference`); other policies ignore it.
        project: map chunks (B, ..., T, A) to the nearest that may be executed (the limits of a
            robot). An `EnergyPolicy` descends within them, so that it selects by energy among what
            is executed; other policies project once, at the end.
        deadline_s: wall-clock budget of the refinement, in seconds. Policies with a fixed number
            of passes ignore it.
    """

    prefix: Tensor | None = None
    warm_start: Tensor | None = None
    project: Projection | None = None
    deadline_s: float | None = None


@dataclass(frozen=True)
class NormalizedConstraints:
    """`ChunkConstraints` in the network's units.

    The tensors have the same shape for every length of the prefix. So one compiled prediction
    serves every length.

    Attributes:
        prefix: (B, T, A), the committed actions; values after the last one are arbitrary.
        prefix_mask: (T, 1) bool, True for committed actions; given exactly if ``prefix`` is.
        warm_start: (B, T, A).
        project: as in `ChunkConstraints`, in the network's units.
        deadline_s: as in `ChunkConstraints`.
    """

    prefix: Tensor | None = None
    prefix_mask: Tensor | None = None
    warm_start: Tensor | None = None
    project: Projection | None = None
    deadline_s: float | None = None

    def apply(self, chunks: Tensor) -> Tensor:
        """Return chunks (B, ..., T, A) projected, and with the committed prefix."""
        if self.project is not None:
            chunks = self.project(chunks)
        return self.hold_prefix(chunks, self.prefix)

    def hold_prefix(self, chunks: Tensor, prefix: Tensor | None) -> Tensor:
        """Return chunks (B, ..., T, A) whose committed actions are those of ``prefix``.

        Args:
            prefix: (B, ..., T, A), possibly with fewer dimensions between B and T than ``chunks``.
        """
        if prefix is None or self.prefix_mask is None:
            return chunks
        extra_dims = (1,) * (chunks.ndim - prefix.ndim)
        return torch.where(
            self.prefix_mask, prefix.view(len(chunks), *extra_dims, *prefix.shape[1:]), chunks
        )
