"""Constraints on a predicted action chunk: a committed prefix, the limits of a robot, a deadline.

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
    """Constraints that a caller of `Policy.predict_chunk` sets on a chunk, in env units.

    Attributes:
        prefix: (B, P, A), the first P actions of the chunk, which are already committed (the first
            To - 1 actions of a chunk lie in the past). A policy trained with
            ``task.max_prefix_len`` predicts the rest conditioned on them. Other policies only keep
            them fixed.
        warm_start: (B, T, A), an earlier plan for the same time steps. An `EnergyPolicy` starts
            from it (see `EnergyInference`); other policies ignore it.
        project: function that maps chunks (B, ..., T, A) to the nearest executable ones, for
            example within a robot's limits. Policies with several candidates project all of them
            and select among the executable chunks.
        deadline_s: wall-clock budget of the refinement, in seconds. Policies with a fixed number
            of passes ignore it.
    """

    prefix: Tensor | None = None
    warm_start: Tensor | None = None
    project: Projection | None = None
    deadline_s: float | None = None


@dataclass(frozen=True)
class NormalizedConstraints:
    """`ChunkConstraints` in network units.

    The tensor shapes do not depend on the length of the prefix, so that one compiled prediction
    serves every length.

    Attributes:
        prefix: (B, T, A), the committed actions; values after the last one are arbitrary.
        prefix_mask: (T, 1) bool, True for committed actions; None if ``prefix`` is None.
        warm_start: (B, T, A), as in `ChunkConstraints`.
        project: as in `ChunkConstraints`, but for chunks in network units.
        deadline_s: as in `ChunkConstraints`.
    """

    prefix: Tensor | None = None
    prefix_mask: Tensor | None = None
    warm_start: Tensor | None = None
    project: Projection | None = None
    deadline_s: float | None = None

    def apply(self, chunks: Tensor) -> Tensor:
        """Return chunks (B, ..., T, A) after the projection, with the committed prefix inserted."""
        if self.project is not None:
            chunks = self.project(chunks)
        return self.hold_prefix(chunks, self.prefix)

    def hold_prefix(self, chunks: Tensor, prefix: Tensor | None) -> Tensor:
        """Return chunks (B, ..., T, A) with the committed actions replaced by ``prefix``.

        Args:
            prefix: (B, ..., T, A), possibly with fewer dimensions between B and T than ``chunks``;
                None leaves the chunks unchanged.
        """
        if prefix is None or self.prefix_mask is None:
            return chunks
        extra_dims = (1,) * (chunks.ndim - prefix.ndim)
        return torch.where(
            self.prefix_mask, prefix.view(len(chunks), *extra_dims, *prefix.shape[1:]), chunks
        )
