"""The order in which a run trains on its data. It depends only on the seed and the step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from ebt_policy.errors import ConfigError


class TrainingData(Protocol):
    """Data that batches are gathered from.

    If it has an attribute ``is_streamed`` that is True, `gather` reads from disk, and the next
    batch is read ahead.
    """

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """Return the rows at these indices, in the format that `Model.normalize` takes."""
        ...


class BatchSampler:
    """A sampler of global batches, without replacement and in a new order for each epoch.

    If the data is streamed from disk, a thread reads the next batch ahead.

    Args:
        data: data to draw from.
        batch_size: rows of a batch.
        seed: seed of the orders.

    Raises:
        ConfigError: if the data has fewer rows than a batch.
    """

    def __init__(self, data: TrainingData, batch_size: int, seed: int) -> None:
        if len(data) < batch_size:
            raise ConfigError(
                f"the data has {len(data)} training windows, fewer than "
                f"train.batch_size={batch_size}; lower train.batch_size."
            )
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self._epoch_order: tuple[int, Tensor] | None = None  # seed and order of one epoch
        self._reader = ThreadPoolExecutor(1) if getattr(data, "is_streamed", False) else None
        self._next: tuple[int, Future[dict[str, Tensor]]] | None = None  # step and its rows

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the rows of a step's global batch."""
        if self._reader is None:
            return self.data.gather(self._index(step))
        ready, self._next = self._next, None
        rows = None if ready is None else ready[1].result()  # The reader is idle from here on.
        if rows is None or ready is None or ready[0] != step:
            rows = self.data.gather(self._index(step))
        index = self._index(step + 1)
        self._next = step + 1, self._reader.submit(self.data.gather, index)
        return rows

    def close(self) -> None:
        """End reading ahead."""
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def _index(self, step: int) -> Tensor:
        """Return the indices of the rows of a step."""
        size, count = self.batch_size, len(self.data)
        epoch, place = divmod(step, count // size)
        seed = self.seed * 1_000_003 + epoch
        if self._epoch_order is None or self._epoch_order[0] != seed:  # cached: slow for long texts
            generator = torch.Generator().manual_seed(seed)
            self._epoch_order = seed, torch.randperm(count, generator=generator)
        return self._epoch_order[1][place * size : (place + 1) * size]


def process_slice(batch: dict[str, Any], index: int, count: int) -> dict[str, Any]:
    """Return the part of a global batch that belongs to one of several processes.

    All parts have the same length, because gradients are averaged over processes. Replayed rows
    that do not divide evenly are dropped.
    """

    def slice_value(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: slice_value(v) for k, v in value.items()}
        if not isinstance(value, Tensor):
            return value
        rows = len(value) // count
        return value[index * rows : (index + 1) * rows]

    return batch if count == 1 else slice_value(batch)
