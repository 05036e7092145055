"""Loss and time of the steps between two log lines."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class LogWindow:
    """Mean loss, time and the first step that is not finite, since the last log line.

    Everything is collected on the device, because reading a number at each step would make the
    host wait for the device.

    Args:
        step: number of steps before the window.
        device: device of the losses.
        check_gradients: whether a gradient that is not finite is an error. With a gradient scaler
            it is not, because the scaler skips such steps.
    """

    def __init__(self, step: int, device: torch.device, *, check_gradients: bool) -> None:
        self._check_gradients = check_gradients
        self._bad_step = torch.zeros((), device=device, dtype=torch.long)
        self._sum_loss = torch.zeros((), device=device)
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start the next window after ``step`` steps."""
        self._first_step = self._first_timed_step = step
        self._start = time.perf_counter()
        self._sum_loss = torch.zeros_like(self._sum_loss)

    def restart_clock(self, step: int) -> None:
        """Exclude the time up to ``step``, which was compilation, from seconds and rate."""
        self._first_timed_step, self._start = step, time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Exclude time in which nothing was trained."""
        self._start += seconds

    def add(self, step: int, metrics: dict[str, Tensor]) -> None:
        """Add the metrics "loss" and "grad_norm_weights" of a step."""
        self._sum_loss = self._sum_loss + metrics["loss"]
        is_fine = metrics["loss"].isfinite()
        if self._check_gradients:
            is_fine = is_fine & metrics["grad_norm_weights"].isfinite()
        self._bad_step = torch.where((self._bad_step == 0) & ~is_fine, step, self._bad_step)

    @property
    def bad_step(self) -> int:
        """The first step with a value that was not finite; 0 if all were finite."""
        return int(self._bad_step)

    @property
    def seconds(self) -> float:
        """Seconds of training in this window."""
        return time.perf_counter() - self._start

    def mean_loss(self, step: int) -> float:
        """Return the mean loss of the window, which ends with ``step``."""
        return float(self._sum_loss) / (step - self._first_step)

    def timed_steps(self, step: int) -> int:
        """Return the number of steps that `seconds` covers."""
        return step - self._first_timed_step
