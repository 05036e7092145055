"""Evaluating language models: ``python -m ebt_policy.eval checkpoint=RUN[@steps=4] ...``.

Leaves ``summary.json``, ``table.md`` and a self-contained ``report.html``; of models that descend
they show surprisal over the steps and over the guesses among which the lowest energy chooses, and
the energy of easy and hard tokens on the way.

Shapes: B batch, S context, N steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from ebt_policy.evaluation.entries import (
    entry_metadata,
    load_entries,
    metadata_rows,
    training_figures,
)
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.report import write_report
from ebt_policy.evaluation.statistics import mean_ci, paired_difference
from ebt_policy.evaluation.tables import ReportSpec, format_count, format_estimate, markdown_table
from ebt_policy.io.output import write_atomic
from ebt_policy.language.data import TokenWindows
from ebt_policy.language.figures import thinking
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.metrics import MOST, habits, held_out, held_out_surprisal
from ebt_policy.language.model import EnergyLanguageModel, TextModel
from ebt_policy.language.test_time_compute import (
    show_energies,
    steps_and_candidates_table,
    study_test_time_compute,
)

console = Console()


def evaluate_language(
    checkpoints: Sequence[str],
    *,
    output: Path,
    device: torch.device,
    command: str,
    corpus: str | None = None,
) -> dict[str, Any]:
    """Held-out perplexity of some models, with intervals; returns what ``summary.json`` holds.

    Args:
        checkpoints: runs, ``RUN@name=value``; a * stands for training runs.
        corpus: another text than that of their training: a name, or the path of a file.

    Raises:
        CheckpointError, ConfigError, TextError: before anything is computed.
    """
    contestants = load_entries(TextModel, checkpoints, device)
    texts = {name: held_out(models[0], corpus, device) for name, models in contestants.items()}
    entries, thoughts, found = [], {}, {}
    with progress_bar() as bar:
        for text, models in contestants.items():
            task, (windows, about) = bar.add_task(text, total=len(models)), texts[text]
            losses = []
            for model in models:
                losses.append(held_out_surprisal(model, windows, MOST).mean(1).numpy())
                bar.advance(task)
            found[text] = np.stack(losses)
            entries.append(_summary(text, models, found[text], about, command))
            masked = [model for model in models if isinstance(model, MaskedModel)]
            if masked:
                each = [habits(model, windows, MOST) for model in masked]
                entries[-1]["habits"] = {k: [one[k] for one in each] for k in each[0]}
            if isinstance(models[0], EnergyLanguageModel):
                thoughts[text] = study_test_time_compute(models, windows)
                entries[-1]["thinking"] = thoughts[text]
    result = {"entries": entries, "paired": _paired(found, texts)}
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "summary.json", json.dumps(result, indent=1) + "\n")
    table = markdown_table(result, TEXT) + steps_and_candidates_table(result)
    write_atomic(output / "table.md", table)
    console.print(Markdown(table))
    for name, found in thoughts.items():
        if found["energies"]:
            console.print(f"\nenergy of tokens, {name}, low to high:", markup=False)
            console.print(show_energies(found["energies"]["tokens"]))
    figures = _figures(checkpoints, thoughts)
    report = write_report(
        output / "report.html", title="text", comparison=result, shown=TEXT, figures=figures,
        notes=[f"Made by: {command}"],
    )  # fmt: skip
    console.print(f"report: {report}", markup=False, soft_wrap=True, highlight=False)
    return result


def _figures(checkpoints: Sequence[str], thoughts: dict[str, Any]) -> list[tuple[str, str, Figure]]:
    figures = []
    if thoughts:
        caption = (
            "Surprisal over the steps of a descent, and over the guesses of which that of the "
            "lowest energy is taken, with 95 % intervals; energies while they descend."
        )
        figures.append(("Thinking", caption, thinking(thoughts)))
    return figures + training_figures(checkpoints, console)


def _summary(
    name: str, models: list[TextModel], losses: np.ndarray, about: dict[str, Any], command: str
) -> dict[str, Any]:
    loss = mean_ci(losses)
    low, high = loss["ci95"]
    to_bits = 1 / (math.log(2) * about["bytes_per_token"])
    return {
        **entry_metadata(name, models, command),
        **about,
        "loss": loss,
        # Of the mean: a mean of exponentials is no perplexity.
        "perplexity": {"mean": math.exp(loss["mean"]), "ci95": [math.exp(low), math.exp(high)]},
        "bits_per_byte": {"mean": loss["mean"] * to_bits, "ci95": [low * to_bits, high * to_bits]},
    }


def _paired(
    found: dict[str, np.ndarray], texts: dict[str, tuple[TokenWindows, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Differences of loss, in nats, of those that read the same windows."""
    return [
        {"a": a, "b": b, "metric": "loss", **paired_difference(found[a], found[b])}
        for a, b in combinations(found, 2)
        if found[a].shape[1] == found[b].shape[1]
        and np.array_equal(texts[a][0].tokens, texts[b][0].tokens)
    ]


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        entry["name"],
        format_count(entry["params"]),
        f"{entry['train_steps'] or 0:,}",
        format_estimate(entry["loss"]),
        format_estimate(entry["perplexity"], 2),
        format_estimate(entry["bits_per_byte"]),
    )


def _facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("text", f"{entry['corpus']} ({entry['part']}), {entry['windows']:,} windows"),
        *metadata_rows(entry),
    ]


def _note(result: Mapping[str, Any]) -> str:
    texts = ", ".join(sorted({f"{e['corpus']} ({e['part']})" for e in result["entries"]}))
    return f"Mean and 95 % interval over windows of {texts} and training seeds."


TEXT = ReportSpec(
    header=("model", "params", "updates", "loss, nats", "perplexity", "bits a byte"),
    row=_row,
    metrics=("loss", "perplexity"),
    facts=_facts,
    note=_note,
    what="window by window of the same text",
)
