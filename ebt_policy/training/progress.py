"""The progress bar of training: phase, steps, loss, rate and remaining time."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from ebt_policy.io.progress import ReportedProgress


class Counter(Protocol):
    step: int
    total_steps: int | None


class TrainingProgress:
    """A progress bar over a counter, whose total may become known during training.

    Args:
        counter: counter of steps.
        enabled: whether to show anything.
        phase: current phase, "training" or "compiling".
    """

    def __init__(self, counter: Counter, *, enabled: bool, phase: str = "training") -> None:
        self.counter = counter
        self.bar = ReportedProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} steps/s"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            disable=not enabled,
        )
        self.task = self.bar.add_task(
            phase, total=counter.total_steps, completed=counter.step, loss="-", rate="-", left="?"
        )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def show_phase(self, phase: str) -> None:
        """Show the current phase."""
        self.bar.update(self.task, description=phase)

    def update(self, loss: float, rate: float) -> None:
        """Show the counter, the loss and the rate in steps per second."""
        # rich restarts its own estimate whenever the total changes.
        step, total = self.counter.step, self.counter.total_steps
        left = "?"
        if total is not None and rate > 0:
            left = str(timedelta(seconds=round((total - step) / rate)))
        self.bar.update(
            self.task, completed=step, total=total,
            loss=f"{loss:.4f}", rate=f"{rate:.1f}", left=left,
        )  # fmt: skip
