"""A wall-clock budget for a loop whose steps take about the same time."""

from __future__ import annotations

import time

from torch import Tensor


class Deadline:
    """A wall-clock budget, compared with the time of the slowest step so far.

    Args:
        budget_s: seconds from now; None for no deadline, in which case no time is measured.
        reserve: number of steps that must fit into the remaining time.
    """

    def __init__(self, budget_s: float | None, reserve: int) -> None:
        if budget_s is not None and not budget_s > 0:
            raise ValueError(f"the deadline must be a positive number of seconds, got {budget_s}.")
        self.budget, self.reserve, self.slowest = budget_s, reserve, 0.0
        self.start = self.mark = time.perf_counter() if budget_s is not None else 0.0

    def tick(self, x: Tensor) -> None:
        """Record the end of a step with result x."""
        if self.budget is not None:
            x.sum().item()  # wait for the accelerator, which runs asynchronously
            now = time.perf_counter()
            self.slowest, self.mark = max(self.slowest, now - self.mark), now

    def exceeded(self) -> bool:
        """Return whether ``reserve`` more steps would exceed the budget."""
        if self.budget is None:
            return False
        return time.perf_counter() - self.start + self.reserve * self.slowest > self.budget
