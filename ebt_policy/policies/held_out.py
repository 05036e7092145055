"""Evaluation of policies without an environment: errors on held-out episodes.

Each policy predicts chunks along the recorded observations of held-out episodes. Errors are
measured in standard deviations of each action entry, so that joints and grippers count alike. A
small error does not imply success, because the recorded actions are not the only good ones.

Shapes: B windows, T horizon, To observations, A action dimension, E held-out episodes, s training
runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ebt_policy.data.episodes import Episodes
from ebt_policy.data.frame_cache import digest_of
from ebt_policy.data.joined_dataset import open_datasets
from ebt_policy.data.windows import Windows
from ebt_policy.errors import ConfigError
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
from ebt_policy.policies.base import Policy
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.entries import PolicyEntry
from ebt_policy.policies.held_out_figures import (
    ChunkTrace,
    chunks_over_time,
    chunks_with_frames,
    error_by_time,
)
from ebt_policy.policies.task_config import PolicyTaskConfig

CACHE = "held_out.jsonl"
BATCH = 64  # windows that are predicted at once
MAX_WINDOWS = 400  # predicted windows of one episode


class HeldOutSet(NamedTuple):
    """Held-out episodes of a task.

    Attributes:
        task: the task.
        episodes: the held-out episodes.
        windows: windows of each episode.
        spread: (A,) standard deviation of each action entry over all episodes, 0 if constant.
        names: (A,) names of the action entries.
        identity: values that identify the data in the result cache.
    """

    task: PolicyTaskConfig
    episodes: Episodes
    windows: list[Windows]
    spread: np.ndarray
    names: list[str]
    identity: Mapping[str, Any]

    def each(self) -> list[dict[str, np.ndarray]]:
        """Return the arrays of each episode."""
        return [self.episodes.episode(i) for i in range(len(self.episodes))]


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
            "path": _listed(eval_set.task.sources),
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
                **paired_difference(a.result.error, b.result.error),
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


def load_held_out(entry: PolicyEntry) -> HeldOutSet:
    """Return the held-out episodes of a policy.

    Raises:
        ConfigError: there are none.
        EpisodeError: the data set is missing or damaged.
    """
    task = PolicyTaskConfig.from_config(entry.model.config)
    episodes, _ = task.demonstrations()
    _, held_out = task.split(episodes, entry.model.config["seed"])
    if held_out is None:
        raise ConfigError(
            f"{entry.name} was trained on all episodes of {_listed(task.sources)}, so none are "
            "left to evaluate it on; train with task.validation_episodes=N, on two or more "
            "episodes."
        )
    actions = episodes.arrays["action"].astype(np.float64)
    spread = actions.std(axis=0)
    spread[spread <= 1e-6 * np.abs(actions).max(axis=0)] = 0.0
    if not spread.any():
        raise ConfigError(
            f"all entries of {task.action_key} are constant in {_listed(task.sources)}; set "
            "task.action_key to another feature."
        )
    key = str(task.action_key)
    with open_datasets(task.sources) as dataset:
        digest = digest_of(dataset, [task.state_keys, key, task.image_size])
        names = list(dataset.features[key].entries) or [f"{key}[{i}]" for i in range(len(spread))]
    rows = held_out.arrays["row"]
    identity = {"data": digest, "rows": [int(rows[0]), int(rows[-1]), len(rows)]}
    windows = [task.windows(held_out.select([i])) for i in range(len(held_out))]
    return HeldOutSet(task, held_out, windows, spread, names, identity)


def _listed(sources: str | Sequence[str]) -> str:
    return sources if isinstance(sources, str) else ", ".join(sources)


def measure_policy(policy: Policy, eval_set: HeldOutSet) -> dict[str, Any]:
    """Return the fields of a `HeldOutResult` of one training run, as lists."""
    varies = eval_set.spread > 0
    scale, shape = eval_set.spread[varies], policy.shape
    first, executed = shape.n_obs_steps - 1, slice(0, shape.n_action_steps)
    errors: dict[str, list[Any]] = {"error": [], "hold_error": [], "by_step": [], "gap": []}
    for episode, windows in zip(eval_set.each(), eval_set.windows, strict=True):
        index = chosen_windows(windows, shape.n_action_steps)
        predicted, recorded, gap = predict_windows(policy, windows, index)
        real = windows.is_real(index)[:, first:].cpu().numpy()
        square = (((predicted - recorded)[:, first:, varies] / scale) ** 2).mean(-1)
        # The newest observation of window i is row i, so the last action is that of row i - 1.
        last = episode["action"][np.maximum(index.numpy() - 1, 0), None]
        hold = (((last - recorded[:, first:])[..., varies] / scale) ** 2).mean(-1)
        later = index.numpy() > 0  # There is no action before the first row.
        if not later.any():
            later[:] = True
        errors["error"].append(root_mean(square[later, executed], real[later, executed]))
        errors["hold_error"].append(root_mean(hold[later, executed], real[later, executed]))
        errors["by_step"].append(
            [root_mean(square[:, [k]], real[:, [k]]) for k in range(square.shape[1])]
        )
        errors["gap"].append(gap)
    gaps = errors.pop("gap")
    return {**errors, "energy_gap": None if None in gaps else gaps}


def root_mean(square: np.ndarray, counts: np.ndarray) -> float | None:
    """Return the root mean of the squares (B, K) where ``counts`` (B, K); None if nowhere."""
    return float(np.sqrt(square[counts].mean())) if counts.any() else None


def chosen_windows(windows: Windows, stride: int) -> torch.Tensor:
    """Return the indices of evenly spaced windows, at most `MAX_WINDOWS`."""
    stride = max(stride // 2, 1, -(-len(windows) // MAX_WINDOWS))
    return torch.arange(0, len(windows), stride)


@torch.no_grad()
def predict_windows(
    policy: Policy, windows: Windows, index: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Predict the chunks of windows.

    Returns:
        Predicted and recorded chunks (B, T, A) in env units, and the mean difference of their
        energies, recorded minus predicted; None without an energy.
    """
    predicted, recorded, gaps = [], [], []
    for part in index.split(BATCH):
        batch = {key: values.to(policy.device) for key, values in windows.gather(part).items()}
        actions = batch.pop("action")
        generators = [torch.Generator().manual_seed(int(i)) for i in part]
        chunk = policy.predict_chunk(batch, generator=generators)
        if isinstance(policy, EnergyPolicy):
            both = torch.stack([actions.to(chunk.actions), chunk.actions], dim=1)
            energies = policy.energies(batch, both.to(policy.device))
            gaps.append((energies[:, 0] - energies[:, 1]).cpu())
        predicted.append(chunk.actions.cpu().numpy())
        recorded.append(actions.cpu().numpy())
    gap = float(torch.cat(gaps).mean()) if gaps else None
    return np.concatenate(predicted), np.concatenate(recorded), gap


def trace_episode(policy: Policy, eval_set: HeldOutSet) -> ChunkTrace:
    """Return the recorded actions of the first held-out episode, and the chunks along it."""
    windows = eval_set.windows[0]
    first, ticks = policy.shape.n_obs_steps - 1, policy.shape.n_action_steps
    index = torch.arange(0, len(windows), ticks)  # window i has its newest observation in row i
    predicted, _, _ = predict_windows(policy, windows, index)
    frames = None
    if policy.shape.cameras:
        camera = next(iter(policy.shape.cameras))
        frames = windows.gather(index)[camera][:, -1].cpu().numpy()
    return ChunkTrace(
        recorded=eval_set.each()[0]["action"],
        starts=index.numpy(),
        chunks=predicted[:, first:],
        executed=ticks,
        names=eval_set.names,
        spread=eval_set.spread,
        frames=frames,
    )
