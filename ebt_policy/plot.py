"""Compare training curves: ``python -m ebt_policy.plot RUN [RUN ...] [output=FILE]``.

Draws the losses, and the scores if available, of training runs into one figure (.svg or .png; by
default ``training_curves.svg``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from rich.console import Console

from ebt_policy.cli.help import print_usage
from ebt_policy.cli.reporting import report_errors
from ebt_policy.errors import ConfigError


def plot_runs(patterns: Sequence[str], output: Path) -> list[Path]:
    """Draw the training curves of runs; return the runs.

    Args:
        patterns: run folders; a ``*`` matches several.
        output: figure to write.

    Raises:
        ConfigError: if no run is given, a run or its training log is missing, or the format of the
            figure is unknown.
    """
    from ebt_policy.evaluation.figure_style import save_figure
    from ebt_policy.evaluation.figures import compare_training_curves

    if output.suffix not in (".svg", ".png"):
        raise ConfigError(f"output={output} must end in .svg or .png.")
    if not patterns:
        raise ConfigError("missing required argument RUN, such as runs/push_t/ebt-xs-seed0.")
    runs = []
    for pattern in patterns:
        matching = [Path(path) for path in sorted(glob(pattern))]
        if not matching:
            raise ConfigError(f"{pattern} does not exist; ebt-list shows the runs.")
        runs += matching
    for run in runs:
        if not (run / "log.jsonl").is_file():
            raise ConfigError(f"{run} has no log.jsonl; give the folder of a training run.")
    try:
        figure = compare_training_curves({run.name: run / "log.jsonl" for run in runs})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, output)
    return runs


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if print_usage(arguments, "ebt-plot RUN [RUN ...] [output=FILE]", __doc__):
        return
    with report_errors():
        outputs = [a.removeprefix("output=") for a in arguments if a.startswith("output=")]
        output = Path(outputs[-1] if outputs else "training_curves.svg")
        runs = plot_runs([a for a in arguments if not a.startswith("output=")], output)
        Console().print(f"{output}: {len(runs)} runs", highlight=False, markup=False)


if __name__ == "__main__":
    main()
