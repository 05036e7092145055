"""The steps of every evaluation: load, measure with a result cache, pair, write and report.

`run_evaluation` is the same for all domains. Each domain has its own `Evaluation` in its
``evaluate.py``. An evaluation writes into its output folder

    summary.json   {"entries": [...], "paired": [...]}
    table.md       the summary as Markdown tables
    report.html    the summary with figures and videos, self-contained
    *.jsonl        result caches, from which the same command resumes after an interruption
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from matplotlib.figure import Figure
from rich.console import Console

from ebt_policy.evaluation.entries import EvalEntry
from ebt_policy.evaluation.eval_run import EvalRun
from ebt_policy.evaluation.figures import training_curve
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.report import write_report
from ebt_policy.evaluation.tables import ReportSpec, markdown_table
from ebt_policy.evaluation.terminal import print_markdown
from ebt_policy.io.atomic_write import atomic_write

console = Console()

Entry = TypeVar("Entry", bound=EvalEntry[Any])
EvalSet = TypeVar("EvalSet")
Result = TypeVar("Result")
ReportFigure = tuple[str, str, Figure]  # title, caption, figure
ReportVideo = tuple[str, str | Path]  # label, MP4


@dataclass
class EvaluatedEntry(Generic[Entry, EvalSet, Result]):
    """An entry with its evaluation data, its result and its part of ``summary.json``."""

    entry: Entry
    eval_set: EvalSet
    result: Result
    summary: dict[str, Any]


class Evaluation(ABC, Generic[Entry, EvalSet, Result]):
    """Base of evaluations: the parts that differ between domains.

    Attributes:
        title: title of the report.
        spec: content of the table and the report.
    """

    title: str
    spec: ClassVar[ReportSpec]

    @abstractmethod
    def load_eval_set(self, entry: Entry, run: EvalRun) -> EvalSet:
        """Return the evaluation data of an entry; all `UserError`s must be raised here."""

    @abstractmethod
    def measure_all(
        self, entries: Sequence[Entry], eval_sets: Sequence[EvalSet], run: EvalRun
    ) -> list[Result]:
        """Measure all entries; reuse results from a cache in the output folder."""

    @abstractmethod
    def summarize(
        self, entry: Entry, eval_set: EvalSet, result: Result, run: EvalRun
    ) -> dict[str, Any]:
        """Return the entry's part of ``summary.json``."""

    def pair(
        self, evaluated: Sequence[EvaluatedEntry[Entry, EvalSet, Result]]
    ) -> list[dict[str, Any]]:
        """Return differences ``{a, b, metric, diff, ci95}`` of entries with the same data."""
        return []

    def table(self, comparison: dict[str, Any]) -> str:
        """Return the text of ``table.md``."""
        return markdown_table(comparison, self.spec)

    def write(
        self,
        comparison: dict[str, Any],
        evaluated: Sequence[EvaluatedEntry[Entry, EvalSet, Result]],
        output: Path,
    ) -> None:
        """Write ``summary.json``, and ``table.md`` if there are metrics; print the table."""
        atomic_write(output / "summary.json", json.dumps(comparison, indent=1) + "\n")
        if self.spec.metrics:
            table = self.table(comparison)
            atomic_write(output / "table.md", table)
            print_markdown(table, console)

    def figures(
        self, evaluated: Sequence[EvaluatedEntry[Entry, EvalSet, Result]], run: EvalRun
    ) -> tuple[list[ReportFigure], list[ReportVideo]]:
        """Return figures and videos for the report."""
        return [], []

    def training_runs(self, entries: Sequence[Entry]) -> list[Path]:
        """Return the runs whose training curves the report shows."""
        return [path for entry in entries for path in entry.runs]

    def notes(self, run: EvalRun) -> list[str]:
        """Return notes for the end of the report, as sentences."""
        return [f"Command: {run.command}"]


class SequentialEvaluation(Evaluation[Entry, EvalSet, Result]):
    """Base of evaluations that measure one entry after another."""

    def num_measurements(self, entry: Entry) -> int:
        """Return the number of times that `measure` calls ``advance`` for an entry."""
        return len(entry.models)

    @abstractmethod
    def measure(self, entry: Entry, eval_set: EvalSet, advance: Callable[[], None]) -> Result:
        """Return the result of an entry, measured or cached; call `advance` after each part."""

    def measure_all(
        self, entries: Sequence[Entry], eval_sets: Sequence[EvalSet], run: EvalRun
    ) -> list[Result]:
        """Measure all entries, with a progress bar for each."""
        results = []
        with progress_bar() as bar:
            for entry, eval_set in zip(entries, eval_sets, strict=True):
                task = bar.add_task(entry.name, total=self.num_measurements(entry))
                results.append(self.measure(entry, eval_set, partial(bar.advance, task)))
        return results


def run_evaluation(
    evaluation: Evaluation[Entry, Any, Any], entries: Sequence[Entry], run: EvalRun
) -> dict[str, Any]:
    """Measure entries, compare them and write a report.

    Returns:
        The content of ``summary.json``.

    Raises:
        UserError: before any entry is measured.
    """
    eval_sets = [evaluation.load_eval_set(entry, run) for entry in entries]
    run.output.mkdir(parents=True, exist_ok=True)
    results = evaluation.measure_all(entries, eval_sets, run)
    evaluated = [
        EvaluatedEntry(entry, eval_set, result, evaluation.summarize(entry, eval_set, result, run))
        for entry, eval_set, result in zip(entries, eval_sets, results, strict=True)
    ]
    comparison: dict[str, Any] = {
        "entries": [item.summary for item in evaluated],
        "paired": evaluation.pair(evaluated),
    }
    evaluation.write(comparison, evaluated, run.output)
    figures, videos = evaluation.figures(evaluated, run)
    report = write_report(
        run.output / "report.html",
        title=evaluation.title,
        comparison=comparison,
        spec=evaluation.spec,
        figures=figures + training_figures(evaluation.training_runs(entries)),
        videos=videos,
        notes=evaluation.notes(run),
    )
    console.print(f"report: {report}", markup=False, soft_wrap=True, highlight=False)
    return comparison


def training_figures(runs: Sequence[Path]) -> list[ReportFigure]:
    """Return one training curve for each run that has a log."""
    figures: list[ReportFigure] = []
    for run in dict.fromkeys(runs):
        log = run / "log.jsonl"
        if log.is_file():
            try:
                figures.append((f"Training of {run.name}", "", training_curve(log)))
            except ValueError as error:  # for example, a run killed before its first log line
                console.print(f"no training curve: {error}", markup=False, soft_wrap=True)
    return figures
