"""The training curve in a run folder, which is drawn again at each checkpoint."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def draw_training_curve(run_dir: Path) -> None:
    """Draw ``training.svg`` into a run folder, if its log has a loss already."""
    from ebt_policy.evaluation.figure_style import save_figure  # slow to import
    from ebt_policy.evaluation.figures import training_curve

    with suppress(ValueError):  # no loss yet
        save_figure(training_curve(run_dir / "log.jsonl"), run_dir / "training.svg")
