"""Suites: the same policies on many tasks, in one table.

``python -m ebt_policy.eval suite=metaworld_10 "checkpoint=runs/{task}/ebt-seed*"`` writes into its
output folder

    suite.jsonl   one line for each training run and task, written once it is played
    <task>/       the results of each task: episodes.jsonl, summary.json, table.md
    suite.json    {"entries": [...], "paired": [...], "improvement": [...], ...}, of success rates
    suite.md      the same as Markdown tables
    suite.svg     means over the tasks, and the success rate on each task

Run the same command again to resume. See `statistics.aggregates` for the aggregation over tasks and
the meaning of the intervals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import matching_runs, parse_checkpoint
from ebt_policy.evaluation.figure_style import save_figure
from ebt_policy.evaluation.statistics import aggregates
from ebt_policy.evaluation.tables import format_estimate, format_interval, markdown
from ebt_policy.evaluation.terminal import print_markdown
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.io.hub import HubError
from ebt_policy.models.base import CheckpointError, checkpoint_folder
from ebt_policy.policies.cached_rollouts import EpisodeRows, play_jobs, rollout_jobs
from ebt_policy.policies.entries import PolicyEntry, check_envs, load_policy_entries, share_env
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.figures import suite_overview
from ebt_policy.policies.metrics import EPISODE_KEYS, METRICS, entry_summary, write_results

console = Console()
CACHE = "suite.jsonl"
TASK = "{task}"  # in a checkpoint, the placeholder for the name of a task


@dataclass(frozen=True)
class Suite:
    """The section ``suite`` of a configuration: name of the suite and names of its tasks."""

    name: str
    tasks: list[str]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError(f"suite={self.name} has no tasks; add some: suite.tasks=[lift,can].")
        if repeated := sorted({t for t in self.tasks if self.tasks.count(t) > 1}):
            raise ConfigError(f"suite={self.name} lists the task {repeated[0]} twice.")


def evaluate_suite(
    checkpoints: list[str],
    config: EvalConfig,
    suite: Suite,
    *,
    output: Path,
    device: torch.device,
    command: str,
) -> dict[str, Any]:
    """Evaluate every policy on every task of the suite, and write the results.

    Args:
        checkpoints, config, output, device, command: as in `evaluate_policies`; ``{task}`` in a
            checkpoint stands for the name of each task.
        suite: the tasks.

    Returns:
        The content of ``suite.json``.

    Raises:
        CheckpointError, ConfigError: before any episode is played.
    """
    by_task = load_suite(checkpoints, suite, device, allow_pickle=config.allow_pickle)
    check_envs(list(chain(*by_task.values())), videos=config.videos > 0)
    jobs = {
        (task, entry.name): rollout_jobs(entry, task, entry.env_spec)
        for task, entries in by_task.items()
        for entry in entries
    }
    episodes = play_jobs(list(chain(*jobs.values())), config, output, CACHE, EPISODE_KEYS)
    comparisons: dict[str, dict[str, Any]] = {}
    successes: dict[str, dict[str, list[list[float]]]] = {}
    trained: dict[str, list[Path]] = {}  # runs on all tasks
    for task, entries in by_task.items():
        summarized = []
        for entry in entries:
            runs = [episodes[job.key] for job in jobs[task, entry.name]]
            summarized.append(_summarize_entry(entry, runs, command))
            table = [[float(row["success"]) for row in run] for run in runs]
            successes.setdefault(entry.name, {})[task] = table
            trained.setdefault(entry.name, []).extend(entry.runs)
        runs = [tuple(entry.runs) for entry in entries]
        comparisons[task] = write_results(output / task, summarized, runs)
    overall = aggregates(successes, {name: tuple(runs) for name, runs in trained.items()})
    result = summarize(suite, comparisons, overall, command)
    write_suite(output, result)
    print_markdown(tables(result), console)
    console.print(f"figure: {output / 'suite.svg'}", markup=False, soft_wrap=True)
    return result


def load_suite(
    checkpoints: Sequence[str], suite: Suite, device: torch.device, *, allow_pickle: bool = False
) -> dict[str, list[PolicyEntry]]:
    """Load task -> entries, in the order of `checkpoints` and with the same names on all tasks.

    Args:
        allow_pickle: see `load_policy_entries`.

    Raises:
        CheckpointError, ConfigError: runs are missing (the message lists all) or damaged, have
            another environment than the other entries, or differ in number between tasks.
    """
    for text in checkpoints:
        if TASK not in text and len(suite.tasks) > 1:
            raise ConfigError(
                f"checkpoint={text} is the same on all tasks of suite={suite.name}; "
                f"write {TASK} where the name of the task belongs, as in runs/{TASK}/ebt."
            )
    texts = {task: [text.replace(TASK, task) for text in checkpoints] for task in suite.tasks}
    if missing := [text for listed in texts.values() for text in listed if _is_missing(text)]:
        raise ConfigError(
            f"suite={suite.name} lacks {', '.join(missing)}; train these runs, or select "
            "tasks that have runs with suite.tasks=[...]."
        )
    by_task = {
        task: load_policy_entries(listed, device, allow_pickle=allow_pickle)
        for task, listed in texts.items()
    }
    for task, entries in by_task.items():
        if not share_env(entries):
            raise ConfigError(
                f"suite= compares policies of one task with equal time limits, but the checkpoints "
                f"for {task} differ."
            )
    for text, entries in zip(checkpoints, zip(*by_task.values(), strict=True), strict=True):
        counts = {task: len(entry.runs) for task, entry in zip(by_task, entries, strict=True)}
        if len(set(counts.values())) > 1:
            raise ConfigError(
                f"checkpoint={text} needs the same number of training runs on every task; there "
                f"are {', '.join(f'{count} for {task}' for task, count in counts.items())}."
            )
        if len({entry.name for entry in entries}) > 1:  # run names that include the task
            for entry in entries:
                entry.name = text
    return by_task


def _is_missing(text: str) -> bool:
    try:
        return not [checkpoint_folder(run) for run in matching_runs(parse_checkpoint(text)[0])]
    except (CheckpointError, HubError):
        return True


def _summarize_entry(
    entry: PolicyEntry, runs: Sequence[EpisodeRows], command: str
) -> tuple[dict[str, Any], EpisodeRows]:
    """Return the summary, without latency, and the episodes of a policy on one task."""
    rows = [
        row | {"train_seed": policy.config.get("seed")}
        for policy, run in zip(entry.models, runs, strict=True)
        for row in run
    ]
    summary = entry_summary(entry.name, entry.metadata(), rows, command)
    # Rollouts measure batched latency, which is not meaningful for a single robot.
    summary["latency_ms"] = dict.fromkeys(summary["latency_ms"])
    return summary, rows


def summarize(
    suite: Suite,
    comparisons: Mapping[str, Mapping[str, Any]],
    over_tasks: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """Return the content of ``suite.json``.

    Args:
        comparisons: task -> `metrics.compare` of all policies.
        over_tasks: `statistics.aggregates` of the successes of all policies.
    """
    entries = []
    summaries = {task: comparison["entries"] for task, comparison in comparisons.items()}
    for by_task in zip(*summaries.values(), strict=True):
        name, seeds = by_task[0]["name"], by_task[0]["train_seed"]
        on_tasks = {
            task: {metric: summary[metric] for metric in METRICS}
            for task, summary in zip(summaries, by_task, strict=True)
        }
        runs = len(seeds) if isinstance(seeds, list) else 1
        entries.append(
            {"name": name, "runs": runs, **over_tasks["entries"][name], "tasks": on_tasks}
        )
    return {
        "suite": suite.name,
        "command": command,
        "episodes": next(iter(summaries.values()))[0]["episodes"],
        "entries": entries,
        "paired": over_tasks["paired"],
        "paired_on_tasks": {task: pairs["paired"] for task, pairs in comparisons.items()},
        "improvement": over_tasks["improvement"],
    }


def tables(result: Mapping[str, Any]) -> str:
    """Return Markdown tables: success over all tasks, paired differences, success on each task."""
    entries = result["entries"]
    rows = [
        (e["name"], str(e["runs"]), format_estimate(e["iqm"]), format_estimate(e["mean"]))
        for e in entries
    ]
    header = ("success over all tasks", "runs per task", "interquartile mean", "mean")
    text = markdown(header, rows, left=1)
    if result["paired"]:
        pairs = []
        for better in result["improvement"]:
            a, b = better["a"], better["b"]
            diffs = {
                p["metric"]: format_interval(p["diff"], p["ci95"], signed=True)
                for p in result["paired"]
                if p["b"] == b
            }
            pairs.append((a, b, diffs["iqm"], diffs["mean"], format_estimate(better)))
        text += "\nDifferences a - b between the first policy and each other policy, and the "
        text += "probability that a run of a outperforms a run of b on a task:\n\n"
        header = ("a", "b", "interquartile mean", "mean", "probability of improvement")
        text += markdown(header, pairs, left=2)
    text += "\n" + markdown(
        ("success", *(entry["name"] for entry in entries)),
        [
            (task, *(format_estimate(entry["tasks"][task]["success"]) for entry in entries))
            for task in entries[0]["tasks"]
        ],
        left=1,
    )
    return f"{text}\n{interval_note(result)}\n"


def interval_note(result: Mapping[str, Any]) -> str:
    """Return a note that explains the intervals of the tables."""
    entries = result["entries"]
    note = (
        f"95 % intervals, {result['episodes']} episodes per run and task. Over all tasks: "
        "stratified bootstrap (Agarwal et al. 2021) of the success rate of each run on each task. "
        "Within a task, episodes are resampled jointly for all policies, and training runs "
        "jointly for policies of the same runs; tasks are not resampled. On one task: Wilson for "
        "one run, bootstrap over runs and episodes for several runs; it is too narrow for two or "
        "three runs that differ much."
    )
    if single_run_names := [entry["name"] for entry in entries if entry["runs"] == 1]:
        names = "all" if len(single_run_names) == len(entries) else ", ".join(single_run_names)
        note += f" With one training run per task ({names}), intervals reflect the episodes only."
    return note


def write_suite(output: Path, result: Mapping[str, Any]) -> None:
    """Write ``suite.md``, ``suite.svg`` and ``suite.json``."""
    atomic_write(output / "suite.md", tables(result))
    save_figure(suite_overview(result), output / "suite.svg")
    atomic_write(output / "suite.json", json.dumps(result, indent=2) + "\n")
