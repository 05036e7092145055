"""Evaluation of language models: ``python -m ebt_policy.eval checkpoint=RUN[@steps=4] ...``.

It writes ``summary.json``, ``table.md`` and a self-contained ``report.html`` with held-out
perplexities and their intervals. For models that descend, they also contain surprisal over steps
and over candidates, and the energy of easy and hard tokens during the descent.

Shapes: B batch, S context, N steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from ebt_policy.evaluation.entries import EvalEntry, entry_metadata, load_entries, metadata_rows
from ebt_policy.evaluation.eval_run import EvalRun
from ebt_policy.evaluation.evaluator import (
    EvaluatedEntry,
    ReportFigure,
    ReportVideo,
    SequentialEvaluation,
    run_evaluation,
)
from ebt_policy.evaluation.statistics import mean_ci, paired_difference
from ebt_policy.evaluation.tables import (
    ReportSpec,
    format_count,
    format_estimate,
    markdown_table,
)
from ebt_policy.language.figures import test_time_compute_figure
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.metrics import (
    MAX_WINDOWS,
    EvalSet,
    held_out_surprisal,
    load_eval_set,
    prediction_collapse_metrics,
)
from ebt_policy.language.model import EnergyLanguageModel, TextModel
from ebt_policy.language.test_time_compute import (
    show_energies,
    steps_and_candidates_table,
    study_test_time_compute,
)

console = Console()
CAPTION = (
    "Surprisal over the steps of a descent, and over the candidates of which the one with the "
    "lowest energy is selected, with 95 % intervals; mean energies during the descent."
)


class LanguageResult(NamedTuple):
    """Measurements of an entry.

    Attributes:
        losses: mean surprisal (models, windows), nats.
        collapse: `prediction_collapse_metrics` of each masked model; empty for others.
        test_time_compute: `study_test_time_compute`; None for models that do not descend.
    """

    losses: np.ndarray
    collapse: list[dict[str, float]]
    test_time_compute: dict[str, Any] | None


Entry = EvalEntry[TextModel]
Evaluated = EvaluatedEntry[Entry, EvalSet, LanguageResult]


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        summary["name"],
        format_count(summary["params"]),
        f"{summary['train_steps'] or 0:,}",
        format_estimate(summary["loss"]),
        format_estimate(summary["perplexity"], 2),
        format_estimate(summary["bits_per_byte"]),
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    text = f"{summary['corpus']} ({summary['part']}), {summary['windows']:,} windows"
    return [("text", text), *metadata_rows(summary)]


def _note(comparison: Mapping[str, Any]) -> str:
    texts = {f"{entry['corpus']} ({entry['part']})" for entry in comparison["entries"]}
    return f"Mean and 95 % interval over windows of {', '.join(sorted(texts))} and training seeds."


LANGUAGE_REPORT = ReportSpec(
    header=("model", "params", "updates", "loss, nats", "perplexity", "bits per byte"),
    row=_row,
    metrics=("loss", "perplexity"),
    facts=_facts,
    note=_note,
    paired_over="window by window of the same text",
)


class LanguageEvaluation(SequentialEvaluation[Entry, EvalSet, LanguageResult]):
    """Evaluation of perplexity on held-out text.

    Args:
        corpus: name or path of a text; None for the text that each model was trained on.
    """

    title = "text"
    spec = LANGUAGE_REPORT

    def __init__(self, corpus: str | None) -> None:
        self.corpus = corpus

    def load_eval_set(self, entry: Entry, run: EvalRun) -> EvalSet:
        return load_eval_set(entry.model, self.corpus, run.device)

    def measure(
        self, entry: Entry, eval_set: EvalSet, advance: Callable[[], None]
    ) -> LanguageResult:
        windows, losses = eval_set.windows, []
        for model in entry.models:
            losses.append(held_out_surprisal(model, windows, MAX_WINDOWS).mean(1).numpy())
            advance()
        collapse = [
            prediction_collapse_metrics(model, windows, MAX_WINDOWS)
            for model in entry.models
            if isinstance(model, MaskedModel)
        ]
        descends = isinstance(entry.model, EnergyLanguageModel)
        compute = study_test_time_compute(entry.models, windows) if descends else None
        return LanguageResult(np.stack(losses), collapse, compute)

    def summarize(
        self, entry: Entry, eval_set: EvalSet, result: LanguageResult, run: EvalRun
    ) -> dict[str, Any]:
        loss = mean_ci(result.losses)
        low, high = loss["ci95"]
        to_bits = 1 / (math.log(2) * eval_set.metadata["bytes_per_token"])
        summary: dict[str, Any] = {
            **entry_metadata(entry, run.command),
            **eval_set.metadata,
            "loss": loss,
            # Perplexity is the exponential of the mean loss, not the mean of exponentials.
            "perplexity": {"mean": math.exp(loss["mean"]), "ci95": [math.exp(low), math.exp(high)]},
            "bits_per_byte": {
                "mean": loss["mean"] * to_bits,
                "ci95": [low * to_bits, high * to_bits],
            },
        }
        if result.collapse:
            keys = result.collapse[0]
            summary["habits"] = {key: [metrics[key] for metrics in result.collapse] for key in keys}
        if result.test_time_compute is not None:
            summary["thinking"] = result.test_time_compute
        return summary

    def pair(self, evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
        """Return loss differences, in nats, of entries evaluated on the same windows."""
        return [
            {
                "a": a.entry.name,
                "b": b.entry.name,
                "metric": "loss",
                **paired_difference(
                    a.result.losses, b.result.losses, same_runs=a.entry.runs == b.entry.runs
                ),
            }
            for a, b in combinations(evaluated, 2)
            if a.result.losses.shape[1] == b.result.losses.shape[1]
            and np.array_equal(a.eval_set.windows.tokens, b.eval_set.windows.tokens)
        ]

    def table(self, comparison: dict[str, Any]) -> str:
        return markdown_table(comparison, self.spec) + steps_and_candidates_table(comparison)

    def figures(
        self, evaluated: Sequence[Evaluated], run: EvalRun
    ) -> tuple[list[ReportFigure], list[ReportVideo]]:
        studies = {
            item.entry.name: item.result.test_time_compute
            for item in evaluated
            if item.result.test_time_compute is not None
        }
        for name, study in studies.items():
            if study["energies"]:
                console.print(f"\nenergy of tokens, {name} (white low, red high):", markup=False)
                console.print(show_energies(study["energies"]["tokens"]))
        return [
            ("Test-time compute", CAPTION, test_time_compute_figure(studies))
        ] if studies else [], []


def evaluate_language(
    checkpoints: Sequence[str],
    *,
    output: Path,
    device: torch.device,
    command: str,
    corpus: str | None = None,
) -> dict[str, Any]:
    """Measure the held-out perplexity of models, with intervals.

    Args:
        checkpoints: runs, as ``RUN`` or ``RUN@name=value``; a * matches several training runs.
        output: folder of the results.
        command: the command line, stored with the results.
        corpus: name or path of a text; None for the text that each model was trained on.

    Returns:
        The content of ``summary.json``.

    Raises:
        CheckpointError, ConfigError, TextError: an argument cannot be used. This is raised before
            anything is measured.
    """
    entries = load_entries(TextModel, checkpoints, device)
    return run_evaluation(LanguageEvaluation(corpus), entries, EvalRun(output, device, command))
