"""Progress bars on a terminal, and lines of text without a terminal."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task
from rich.text import Text

LINE_INTERVAL_S = 30.0


class ReportedProgress(Progress):
    """A rich progress bar that prints lines of text if there is no terminal.

    Without a terminal (nohup, Slurm, CI) each task that has changed prints a line every
    `LINE_INTERVAL_S` seconds and at the end. A thread prints the lines, so they appear even while a
    single step takes minutes.

    Args:
        columns: as in `rich.progress.Progress`; lines have no bars and spinners.
        console: console to print to; by default a new one on stdout.
        disable: whether to show nothing.
    """

    def __init__(
        self, *columns: str | ProgressColumn, console: Console | None = None, disable: bool = False
    ) -> None:
        console = console or Console()
        is_live = console.is_terminal or console.is_jupyter
        super().__init__(*columns, console=console, disable=disable or not is_live)
        self._prints_lines = not (disable or is_live)
        self._stopped = threading.Event()
        self._printed: dict[int, str] = {}

    def start(self) -> None:
        super().start()
        if self._prints_lines:
            self._thread = threading.Thread(target=self._print_lines, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        super().stop()
        if self._prints_lines and not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            self.print_tasks()

    def print_tasks(self) -> None:
        """Print a line for each task that has changed since its last line."""
        for task in self.tasks:
            line = self._line(task)
            if task.visible and self._printed.get(task.id) != line:
                self._printed[task.id] = line
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _print_lines(self) -> None:
        while not self._stopped.wait(LINE_INTERVAL_S):
            self.print_tasks()

    def _line(self, task: Task) -> str:
        cells = []
        for column in self.columns:
            if isinstance(column, str):
                cells.append(column.format(task=task))
            elif not isinstance(column, BarColumn | SpinnerColumn):
                cell = column(task)
                cells.append(cell.plain if isinstance(cell, Text) else str(cell))
        return "  ".join(cell.strip() for cell in cells)
