"""The training curve in a run folder, updated during training."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

INTERVAL_S = 30.0


class LiveCurve:
    """Writer of ``training.svg`` in a run folder, at most every `INTERVAL_S` seconds."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._last_drawn = time.monotonic()

    def update(self) -> None:
        """Draw the curve if the last drawing is older than `INTERVAL_S`."""
        if time.monotonic() - self._last_drawn > INTERVAL_S:
            self.draw()

    def draw(self) -> None:
        """Draw the curve if the log already has a loss."""
        from ebt_policy.evaluation.figure_style import save_figure  # slow to import
        from ebt_policy.evaluation.figures import training_curve

        with suppress(ValueError):  # no loss yet
            save_figure(training_curve(self._run_dir / "log.jsonl"), self._run_dir / "training.svg")
        self._last_drawn = time.monotonic()
