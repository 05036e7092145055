"""Metrics of policies: the files of an evaluation of episodes, and its table.

    <out_dir>/episodes.jsonl   one line for each episode, with the name of its entry
    <out_dir>/summary.json     {"entries": [...], "paired": [...]}
    <out_dir>/table.md         the summary as Markdown tables

An entry is one policy with its inference options, for example 4 steps and 8 candidates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.evaluation.provenance import provenance
from ebt_policy.evaluation.statistics import mean_ci, paired_difference, percentiles, success_rate
from ebt_policy.evaluation.tables import (
    MISSING,
    ReportSpec,
    format_count,
    format_interval,
    format_minutes,
    format_number,
    markdown_table,
    or_missing,
)
from ebt_policy.io.atomic_write import atomic_write

EpisodeRow = Mapping[str, Any]  # `dataclasses.asdict(EpisodeResult)`, see `EPISODE_KEYS`
SummarizedEntry = tuple[Mapping[str, Any], Sequence[EpisodeRow]]  # (summary, its episodes)

POLICY_KEYS = (
    "task",
    "model",
    "params",
    "objective",
    "steps",
    "demos",
    "train_seed",
    "train_steps",
    "train_seconds",
    "device",
)
EPISODE_KEYS = ("seed", "score", "success", "length", "chunks", "video")
METRICS = ("score", "success")


def entry_summary(
    name: str,
    metadata: Mapping[str, Any],
    episodes: Sequence[Mapping[str, Any]],
    command: str,
) -> dict[str, Any]:
    """Summarise the episodes of one entry.

    Args:
        name: name of the entry.
        metadata: exactly `POLICY_KEYS`. A key that does not apply is None, such as `objective` for
            a baseline. `train_seed` is a list for several training runs.
        episodes: `dataclasses.asdict(EpisodeResult)` of each episode: seed, score, success, length,
            chunks `[{step, energy, grad_norm, steps_used, latency_ms}]` and video. With several
            training runs, each episode also has its `train_seed`.
        command: the command as the user typed it.

    Returns:
        name, the policy keys, episodes (the number of seeds), score and success `{mean, ci95}`
        (bootstrap; Wilson for the success of one run), latency_ms `{p50, p95, p99}` and steps_used
        `{mean}` over all chunks, command, date, version and commit. Latency and steps are None if
        no chunk has them.

    Raises:
        ValueError: an empty name, missing or unknown policy keys, no episodes, repeated seeds, runs
            that played different seeds, or values that are not finite.
    """
    if not name:
        raise ValueError("An entry needs a name, which labels its row and its episodes.")
    missing = [key for key in POLICY_KEYS if key not in metadata]
    unknown = [key for key in metadata if key not in POLICY_KEYS]
    if missing or unknown:
        raise ValueError(
            f"metadata of '{name}' must hold exactly {', '.join(POLICY_KEYS)}; "
            f"missing: {missing or 'none'}, unknown: {unknown or 'none'}."
        )
    if not episodes:
        raise ValueError(f"'{name}' has no episodes: evaluate at least one first.")
    scores, successes = (_by_run(episodes, key, name) for key in METRICS)
    latencies = _chunk_values(episodes, "latency_ms")
    steps_used = _chunk_values(episodes, "steps_used")
    no_latency = {"p50": None, "p95": None, "p99": None}
    return {
        "name": name,
        **{key: metadata[key] for key in POLICY_KEYS},
        "episodes": scores.shape[1],
        "score": mean_ci(scores),
        "success": success_rate(successes),
        "latency_ms": percentiles(latencies) if latencies else no_latency,
        "steps_used": {"mean": mean_ci(steps_used)["mean"] if steps_used else None},
        "command": command,
        **provenance(),
    }


def _column(episodes: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    for i, episode in enumerate(episodes):
        if key not in episode:
            raise ValueError(f"Episode {i} has no '{key}': pass dataclasses.asdict(EpisodeResult).")
    return [episode[key] for episode in episodes]


def _by_run(episodes: Sequence[Mapping[str, Any]], key: str, name: str) -> np.ndarray:
    """Return a metric as an array (training runs, seeds), both sorted."""
    runs: dict[Any, dict[int, float]] = {}
    for episode, seed, value in zip(
        episodes, _column(episodes, "seed"), _column(episodes, key), strict=True
    ):
        run = runs.setdefault(episode.get("train_seed"), {})
        if seed in run:
            raise ValueError(f"'{name}' has several episodes of seed {seed}; keep one.")
        run[seed] = float(value)
    seeds = sorted(next(iter(runs.values())))
    if any(sorted(run) != seeds for run in runs.values()):
        raise ValueError(f"The training runs of '{name}' did not play the same seeds.")
    return np.array([[runs[r][s] for s in seeds] for r in sorted(runs, key=lambda r: r or 0)])


def _chunk_values(episodes: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    chunks = (chunk for chunks in _column(episodes, "chunks") for chunk in chunks)
    return [chunk[key] for chunk in chunks if chunk.get(key) is not None]


def compare(
    entries: Sequence[SummarizedEntry], runs: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Return `{"entries": [summary], "paired": [{a, b, metric, diff, ci95}]}`.

    Args:
        entries, runs: as in `pair_entries`.

    Raises:
        ValueError: as `pair_entries`.
    """
    paired = pair_entries(entries, runs)
    return {"entries": [dict(summary) for summary, _ in entries], "paired": paired}


def pair_entries(
    entries: Sequence[SummarizedEntry], runs: Sequence[Hashable] | None = None
) -> list[dict[str, Any]]:
    """Return differences `{a, b, metric, diff, ci95}` of entries that played the same episodes.

    `diff` is the mean of a - b over episodes with equal seeds, for score and for success. Two
    entries are paired if they have the same task and exactly the same seeds.

    Args:
        entries: the entries.
        runs: identity of the training runs of each entry; None if all differ.

    Raises:
        ValueError: there are no entries, or two entries have the same name.
    """
    if not entries:
        raise ValueError("There is nothing to compare: give at least one entry.")
    names = [summary["name"] for summary, _ in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"Two entries are named '{repeated[0]}': give each its own name.")
    seeds = [set(_column(episodes, "seed")) for _, episodes in entries]
    values = [{m: _by_run(rows, m, summary["name"]) for m in METRICS} for summary, rows in entries]
    paired = []
    for i, j in combinations(range(len(entries)), 2):
        if entries[i][0]["task"] != entries[j][0]["task"] or seeds[i] != seeds[j]:
            continue
        for metric in METRICS:
            same_runs = runs is not None and runs[i] == runs[j]
            difference = paired_difference(
                values[i][metric], values[j][metric], same_runs=same_runs
            )
            paired.append({"a": names[i], "b": names[j], "metric": metric, **difference})
    return paired


def write_results(
    output: str | os.PathLike[str],
    entries: Sequence[SummarizedEntry],
    runs: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """Compare entries, write the results (see `write_comparison`) and return the comparison.

    Args:
        output: folder of the results.
        entries, runs: as in `pair_entries`.
    """
    comparison = compare(entries, runs)
    write_comparison(output, comparison, entries)
    return comparison


def write_comparison(
    output: str | os.PathLike[str],
    comparison: Mapping[str, Any],
    entries: Sequence[SummarizedEntry],
) -> None:
    """Write `episodes.jsonl`, `table.md` and `summary.json` into a folder.

    An episode's line has `EPISODE_KEYS`, and `train_seed` if the episode has one. Each file is
    written under a temporary name and then renamed. `summary.json` is the last file, so that the
    others are complete if it exists.

    Raises:
        ValueError: a value is not valid in JSON (NaN, infinity); nothing is written then.
    """
    for _, episodes in entries:
        for key in EPISODE_KEYS:
            _column(episodes, key)
    try:
        lines = [
            _json({"entry": summary["name"], **_episode_line(episode)})
            for summary, episodes in entries
            for episode in episodes
        ]
        summary_json = _json(comparison, indent=2)
    except ValueError as error:
        raise ValueError(f"The results contain a number that is not JSON: {error}.") from error
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "episodes.jsonl", "".join(line + "\n" for line in lines))
    atomic_write(folder / "table.md", markdown_table(comparison, POLICY_REPORT))
    atomic_write(folder / "summary.json", summary_json + "\n")


def _episode_line(episode: Mapping[str, Any]) -> dict[str, Any]:
    optional = {k: episode[k] for k in ("train_seed",) if k in episode}
    return {**optional, **{k: episode[k] for k in EPISODE_KEYS}}


def _json(value: Any, indent: int | None = None) -> str:
    # NumPy scalars and arrays have .tolist(); other types are an error of the caller.
    def plain(item: Any) -> Any:
        if hasattr(item, "tolist"):
            return item.tolist()
        raise TypeError(f"{type(item).__name__} cannot be written as JSON")

    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False, default=plain)


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        entry["name"],
        format_count(entry["params"]),
        MISSING if entry["steps"] is None else str(entry["steps"]),
        format_interval(entry["score"]["mean"], entry["score"]["ci95"]),
        format_interval(entry["success"]["mean"], entry["success"]["ci95"]),
        " / ".join(format_number(entry["latency_ms"][p]) for p in ("p50", "p95", "p99")),
        format_minutes(entry["train_seconds"]),
    )


def _facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    steps = f"{or_missing(entry['steps'])} steps"
    trained = f"{or_missing(entry['demos'])} demonstrations, {or_missing(entry['train_steps'])}"
    return [
        ("task", f"{entry['task']}, {entry['episodes']} episodes"),
        (
            "model",
            f"{entry['model']}, objective {or_missing(entry['objective'])}, {steps} (mean used "
            f"{format_number(entry['steps_used']['mean'])})",
        ),
        ("training", f"{trained} updates, seed {or_missing(entry['train_seed'])}"),
        *((key, or_missing(entry.get(key))) for key in ("device", "date", "version", "commit")),
        ("command", str(entry["command"])),
    ]


def interval_note(comparison: Mapping[str, Any]) -> str:
    """Return a note that explains the means and intervals of the table."""
    entries = comparison["entries"]
    counts = sorted({entry["episodes"] for entry in entries})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    runs = {len(s) if isinstance(s := entry["train_seed"], list) else 1 for entry in entries}
    note = f"Mean and 95 % interval over {number} episode{'' if counts == [1] else 's'} per entry"
    if runs == {1}:
        return (
            f"{note} (score: percentile bootstrap; success: Wilson). "
            "The intervals reflect variation between episodes, not between training seeds."
        )
    several = " or ".join(str(count) for count in sorted(runs))
    return (
        f"{note}, each played by {several} training runs (bootstrap over episodes and runs; with "
        "one run, over episodes only, and Wilson for success)."
    )


POLICY_REPORT = ReportSpec(
    header=(
        "policy", "params", "steps", "score", "success", "chunk latency p50 / p95 / p99 (ms)",
        "training (min)",
    ),
    row=_row,
    metrics=METRICS,
    facts=_facts,
    note=interval_note,
    paired_over="episode by episode over the same seeds",
)  # fmt: skip
