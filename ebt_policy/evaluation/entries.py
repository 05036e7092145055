"""What evaluations that play no episodes share: an entry's models, and how they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from rich.console import Console

import ebt_policy
from ebt_policy.evaluation.contestants import (
    load_runs,
    made,
    matching_runs,
    parse_checkpoint,
    unique_names,
)
from ebt_policy.evaluation.figures import training_curve
from ebt_policy.evaluation.tables import or_missing
from ebt_policy.models.base import Model

M = TypeVar("M", bound=Model)


def load_entries(
    kind: type[M], checkpoints: Sequence[str], device: torch.device
) -> dict[str, list[M]]:
    """Name -> models of each ``RUN[@name=value,...]``; a * in RUN stands for training runs.

    Raises:
        CheckpointError, ConfigError: what is not there, of another kind, or listed twice.
    """
    named, models = [], []
    for text in checkpoints:
        path, changes = parse_checkpoint(text)
        runs, found = load_runs(text, partial(kind.from_checkpoint, device=device))
        name = path.resolve().name + (f"@{text.rpartition('@')[2]}" if changes else "")
        named.append((name, [run.resolve() for run in runs]))
        models.append(found)
    return dict(zip(unique_names(named), models, strict=True))


def runs_of(text: str) -> list[Path]:
    """The training runs that ``RUN[@name=value,...]`` stands for."""
    return matching_runs(parse_checkpoint(text)[0])


def first_of_runs(names: Iterable[str]) -> set[str]:
    """Of entries that differ only in how the same runs predict the first ones: what does not depend
    on that is measured once."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name.partition("@")[0], name)
    return set(found.values())


def entry_metadata(name: str, models: Sequence[Model], command: str) -> dict[str, Any]:
    """What ``summary.json`` says of how an entry was trained and evaluated."""
    return {"name": name, **made(models), "command": command, "version": ebt_policy.__version__}


def metadata_rows(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for the report."""
    return [
        (
            "model",
            f"{entry['model']}, objective {or_missing(entry['objective'])}, {entry['steps']} steps",
        ),
        ("training", f"{or_missing(entry['train_steps'])} updates, seed {entry['train_seed']}"),
        *((key, str(entry[key])) for key in ("device", "version", "command")),
    ]


def training_figures(checkpoints: Sequence[str], console: Console) -> list[tuple[str, str, Figure]]:
    """For the report: how each run learned, as far as its log tells."""
    figures = []
    for run in [run for text in checkpoints for run in runs_of(text)]:
        log = run / "log.jsonl"
        if log.is_file():
            try:
                figures.append((f"Training of {run.name}", "", training_curve(log)))
            except ValueError as error:  # say, a run killed before its first line
                console.print(f"no training curve: {error}", markup=False, soft_wrap=True)
    return figures
