"""Evaluation of policies without an environment: errors on held-out episodes.

Each policy predicts chunks along the recorded observations of held-out episodes. Errors are
measured in standard deviations of each action entry, so that joints and grippers count alike. A
small error does not imply success, because the recorded actions are not the only good ones.

Shapes: T horizon, To observations, E held-out episodes, s training runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ebt_policy.evaluation.entries import entry_metadata, metadata_rows
from ebt_policy.evaluation.eval_run import EvalRun
from ebt_policy.evaluation.evaluator import (
    EvaluatedEntry,
    ReportFigure,
    ReportVideo,
    SequentialEvaluation,
)
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.evaluation.statistics import mean_ci, paired_difference
from ebt_policy.evaluation.tables import (
    ReportSpec,
    format_count,
    format_estimate,
    format_interval,
    format_minutes,
)
from ebt_policy.policies.entries import PolicyEntry
from ebt_policy.policies.held_out_errors import (
    HeldOutSet,
    listed,
    load_held_out,
    measure_policy,
    trace_episode,
)
from ebt_policy.policies.held_out_figures import (
    chunks_over_time,
    chunks_with_frames,
    error_by_time,
)

CACHE = "held_out.jsonl"


class HeldOutResult(NamedTuple):
    """Errors of an entry, in standard deviations of the action.

    Attributes:
        error: (s, E) root mean square error of the executed actions.
        hold_error: (E,) error of repeating the last recorded action instead.
        by_step: (s, E, K) root mean square error of each of the K = T - To + 1 predicted actions;
            NaN beyond the end of a short episode.
        energy_gap: (s, E) energy of the recorded chunk minus energy of the predicted chunk, in nats
            for ``objective=flow``; None without an energy.
    """

    error: np.ndarray
    hold_error: np.ndarray
    by_step: np.ndarray
    energy_gap: np.ndarray | None


Evaluated = EvaluatedEntry[PolicyEntry, HeldOutSet, HeldOutResult]


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    gap = summary.get("energy_gap")
    return (
        summary["name"], format_count(summary["params"]), str(summary["steps"]),
        format_estimate(summary["error"]), "" if gap is None else format_estimate(gap, 1),
        format_minutes(summary["train_seconds"]),
    )  # fmt: skip


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    held_out = f"{summary['episodes']} held-out episodes, {summary['rows']:,} rows"
    return [("data", f"{summary['path']}, {held_out}"), *metadata_rows(summary)]


def _note(comparison: Mapping[str, Any]) -> str:
    first = comparison["entries"][0]
    hold = first["hold_error"]
    return (
        "Root mean square error of the executed actions on held-out episodes, in standard "
        "deviations of each action entry, with 95 % intervals over episodes and training seeds. "
        "Repeating the last action, which policies do not observe, has the error "
        f"{format_interval(hold['mean'], hold['ci95'])}."
    )


class HeldOutEvaluation(SequentialEvaluation[PolicyEntry, HeldOutSet, HeldOutResult]):
    """Evaluation of policies by their errors on held-out episodes.

    Args:
        first: entry whose task provides the title.
        output: folder of the cache.
    """

    spec = ReportSpec(
        header=(
            "policy", "params", "steps", "error", "energy gap (recorded minus predicted chunk)",
            "training (min)",
        ),
        row=_row,
        metrics=("error",),
        facts=_facts,
        note=_note,
        paired_over="episode by episode",
    )  # fmt: skip

    def __init__(self, first: PolicyEntry, output: Path) -> None:
        self.title, self.cache_file = first.task_name, output / CACHE

    def load_eval_set(self, entry: PolicyEntry, run: EvalRun) -> HeldOutSet:
        return load_held_out(entry)

    def measure(
        self, entry: PolicyEntry, eval_set: HeldOutSet, advance: Callable[[], None]
    ) -> HeldOutResult:
        cache = ResultCache(self.cache_file, "errors")
        runs = []
        for path, policy in zip(entry.runs, entry.models, strict=True):
            identity = {
                "key": "held-out errors",
                "checkpoint": fingerprint(path),
                "inference": asdict(policy.inference) if policy.inference is not None else None,
                "data": dict(eval_set.identity),
            }
            runs.append(
                cache.get_or_compute(identity, lambda p=policy: measure_policy(p, eval_set))
            )
            advance()
        gaps = [run["energy_gap"] for run in runs]
        return HeldOutResult(
            np.array([run["error"] for run in runs]),
            np.array(runs[0]["hold_error"]),
            np.array([run["by_step"] for run in runs], dtype=float),  # None becomes NaN
            None if None in gaps else np.array(gaps),
        )

    def summarize(
        self, entry: PolicyEntry, eval_set: HeldOutSet, result: HeldOutResult, run: EvalRun
    ) -> dict[str, Any]:
        gap = {} if result.energy_gap is None else {"energy_gap": mean_ci(result.energy_gap)}
        return {
            **entry_metadata(entry, run.command),
            "path": listed(eval_set.task.sources),
            "episodes": len(eval_set.episodes),
            "rows": int(eval_set.episodes.ends[-1]),
            "error": mean_ci(result.error),
            "hold_error": mean_ci(result.hold_error),
            **gap,
        }

    def pair(self, evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
        return [
            {
                "a": a.entry.name, "b": b.entry.name, "metric": "error",
                **paired_difference(
                    a.result.error, b.result.error, same_runs=a.entry.runs == b.entry.runs
                ),
            }
            for a, b in combinations(evaluated, 2)
            if a.eval_set.identity == b.eval_set.identity
        ]  # fmt: skip

    def figures(
        self, evaluated: Sequence[Evaluated], run: EvalRun
    ) -> tuple[list[ReportFigure], list[ReportVideo]]:
        first = evaluated[0].eval_set
        fps = first.task.fps
        same = [item for item in evaluated if item.eval_set.identity == first.identity]
        errors = {item.entry.name: item.result.by_step for item in evaluated}
        traces = {item.entry.name: trace_episode(item.entry.model, item.eval_set) for item in same}
        figures = [
            (
                "Error over time ahead",
                "Root mean square error of each predicted action, in standard deviations.",
                error_by_time(errors, fps),
            ),
            (
                "Predicted and recorded actions",
                "Executed part of the chunks along the first held-out episode. The panels show the "
                "entries of the action that vary most in it.",
                chunks_over_time(traces, fps),
            ),
        ]
        if trace := next((t for t in traces.values() if t.frames is not None), None):
            caption = "Frames of the first camera, and the chunks that are predicted from them."
            figures.append(("Predictions and frames", caption, chunks_with_frames(trace, fps)))
        return figures, []

    def training_runs(self, entries: Sequence[PolicyEntry]) -> list[Path]:
        """Return the first run of each entry."""
        return [entry.runs[0] for entry in entries]
