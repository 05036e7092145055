"""List configurations and runs: ``python -m ebt_policy.list [runs=FOLDER]``.

Prints the tasks, models, objectives, robots, suites, vision encoders and sizes with their
descriptions, the pretrained models, and the training runs with their results and dates.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ebt_policy.cli.composition import CONFIGS, group_choices, group_description
from ebt_policy.cli.help import print_usage
from ebt_policy.cli.reporting import report_errors
from ebt_policy.errors import ConfigError
from ebt_policy.models.checkpoint_source import PREFIX, pretrained_names

GROUPS = {
    "task": "Tasks",
    "model": "Models",
    "objective": "Objectives",
    "robot": "Robots",
    "suite": "Suites of tasks",
    "vision": "Vision encoders",
}


def list_everything(runs: Path, console: Console) -> None:
    """Print all groups and the runs in a folder."""
    for group, title in GROUPS.items():
        rows = [
            (f"{group}={name}", group_description(group, name)) for name in group_choices(group)
        ]
        print_rows(title, rows, console)
    pretrained = [(f"checkpoint={PREFIX}{name}", "") for name in pretrained_names()]
    print_rows("Pretrained models", pretrained, console)
    print_rows("Sizes", list(describe_sizes()), console)
    print_rows(f"Runs in {runs}", list(find_runs(runs)), console)


def print_rows(title: str, rows: list[tuple[str, str]], console: Console) -> None:
    """Print names and descriptions in two columns; long names have a line of their own."""
    console.print(f"\n{title}", style="bold", markup=False, highlight=False)
    table = Table.grid(padding=(0, 2, 0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for row in rows or [("none", "")]:
        table.add_row(*row)
    console.print(table, markup=False, highlight=False)


def describe_sizes() -> Iterator[tuple[str, str]]:
    """Yield each size and its transformer, from small to large."""
    folder = files(CONFIGS).joinpath("size")
    sizes = [yaml.safe_load(file.read_text("utf-8")) for file in folder.iterdir()
             if file.name.endswith(".yaml")]  # fmt: skip
    for size in sorted(sizes, key=lambda size: (size["width"], size["layers"])):
        shape = f"width {size['width']}, {size['heads']} heads, {size['layers']} layers"
        yield f"size={size['name']}", shape


def find_runs(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each training run in a folder: its path, and its updates, result and date."""
    for checkpoints in sorted(folder.rglob("checkpoints")):
        steps = sorted(checkpoints.glob("step_*"))
        if not steps:
            continue
        run = checkpoints.parent
        date = datetime.fromtimestamp(steps[-1].stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        updates = int(steps[-1].name.removeprefix("step_"))
        yield str(run), f"{updates:,} updates, {describe_result(run)}, {date}"


def describe_result(run: Path) -> str:
    """Return the first metrics of a run's evaluation, such as ``score 0.98 [0.97, 0.99]``."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        entry: dict[str, Any] = json.loads((run / "evaluation" / "summary.json").read_text())[
            "entries"
        ][0]
        metrics = {k: v for k, v in entry.items() if isinstance(v, dict) and "ci95" in v}
        texts = [
            f"{name} {value['mean']:.3g} [{value['ci95'][0]:.3g}, {value['ci95'][1]:.3g}]"
            for name, value in list(metrics.items())[:2]
        ]
        if texts:
            return ", ".join(texts)
    return "not evaluated"


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if print_usage(arguments, "ebt-list [runs=FOLDER]", __doc__):
        return
    with report_errors():
        options = {a.partition("=")[0]: a.partition("=")[2] for a in arguments}
        if unknown := [name for name in options if name != "runs"]:
            raise ConfigError(f"unknown option {unknown[0]}; the only option is runs=FOLDER.")
        list_everything(Path(options.get("runs", "runs")), Console())


if __name__ == "__main__":
    main()
