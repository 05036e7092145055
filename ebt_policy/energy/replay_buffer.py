"""Replay buffer of earlier predictions, from which training continues descents.

Du & Mordatch 2019 (persistent chains) and the S2 recipe of EBT continue from recent predictions.
The landscape is then also learned near its own minima, and not only near the initial noise.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ReplayBuffer:
    """A ring buffer of training rows (context, target and latest candidate) on their device.

    Args:
        capacity: number of rows to keep; the oldest rows are overwritten.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"the replay buffer needs a capacity of at least 1, got {capacity}.")
        self.capacity = capacity
        self.rows: dict[str, Tensor] = {}
        self.filled = 0
        self.cursor = 0

    def __len__(self) -> int:
        return self.filled

    def add(self, rows: dict[str, Tensor]) -> None:
        """Store rows, tensors (N, ...) with equal N; only the last ``capacity`` rows are stored.

        Raises:
            ValueError: if the tensors differ in N, or in their names from earlier rows.
        """
        lengths = {key: len(value) for key, value in rows.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"rows must have tensors of equal length, got {lengths}.")
        rows = {key: value.detach()[-self.capacity :] for key, value in rows.items()}
        if not self.rows:
            self.rows = {k: v.new_zeros(self.capacity, *v.shape[1:]) for k, v in rows.items()}
        if rows.keys() != self.rows.keys():
            raise ValueError(f"the buffer holds {sorted(self.rows)}, got {sorted(rows)}.")
        count = len(next(iter(rows.values())))
        for key, value in rows.items():
            slots = (torch.arange(count, device=value.device) + self.cursor) % self.capacity
            self.rows[key][slots] = value
        self.cursor = (self.cursor + count) % self.capacity
        self.filled = min(self.filled + count, self.capacity)

    def sample(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return up to ``count`` distinct rows, drawn uniformly."""
        chosen = torch.randperm(self.filled, generator=generator)[:count]
        return {key: value[chosen.to(value.device)] for key, value in self.rows.items()}

    def state_dict(self) -> dict[str, object]:
        return {"rows": self.rows, "filled": self.filled, "cursor": self.cursor}

    def load_state_dict(self, state: dict, device: torch.device | str | None = None) -> None:
        """Load a state that `state_dict` returned onto ``device``, the device of the training.

        Raises:
            ValueError: if the state comes from a buffer with another capacity.
        """
        rows = {key: value.to(device, copy=True) for key, value in state["rows"].items()}
        if any(len(value) != self.capacity for value in rows.values()):
            raise ValueError(
                f"the stored replay buffer does not have {self.capacity} rows; "
                "set objective.replay to its value in the stored run."
            )
        self.rows, self.filled, self.cursor = rows, int(state["filled"]), int(state["cursor"])
