"""Progress bars of evaluations."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ebt_policy.io.progress import ReportedProgress


def progress_bar() -> ReportedProgress:
    """Return a progress bar with a line for each entry."""
    return ReportedProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
