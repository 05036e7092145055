"""A wall-clock budget for a loop whose steps cost about the same."""

from __future__ import annotations

import time

from torch import Tensor


class Deadline:
    """A clock that says when the time left is too short, judged by the slowest step so far.

    Args:
        budget_s: seconds from now; None for no deadline, and then nothing is ever measured.
        reserve: steps whose time must be left for going on.
    """

    def __init__(self, budget_s: float | None, reserve: int) -> None:
        if budget_s is not None and not budget_s > 0:
            raise ValueError(f"the deadline must be a positive number of seconds, got {budget_s}.")
        self.budget, self.reserve, self.slowest = budget_s, reserve, 0.0
        self.start = self.mark = time.perf_counter() if budget_s is not None else 0.0

    def tick(self, x: Tensor) -> None:
        """Record that a step ended whose result is x."""
        if self.budget is not None:
            x.sum().item()  # an accelerator runs behind the clock: wait for it
            now = time.perf_counter()
            self.slowest, self.mark = max(self.slowest, now - self.mark), now

    def exceeded(self) -> bool:
        """Return whether going on would overrun the budget."""
        if self.budget is None:
            return False
        return time.perf_counter() - self.start + self.reserve * self.slowest > self.budget
