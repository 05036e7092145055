"""The progress line of training: share done, loss, rate, time left."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Counter(Protocol):
    step: int
    total_steps: int | None


class TrainingProgress:
    """A rich progress bar over a counter; the total may become known on the way."""

    def __init__(self, counter: Counter, *, enabled: bool) -> None:
        self.counter = counter
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} steps/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not enabled,
        )
        self.task = self.bar.add_task(
            "training", total=counter.total_steps, completed=counter.step, loss="-", rate="-"
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

    def update(self, loss: float, rate: float) -> None:
        self.bar.update(
            self.task,
            completed=self.counter.step,
            total=self.counter.total_steps,
            loss=f"{loss:.4f}",
            rate=f"{rate:.1f}",
        )
