"""Evaluation of policies: ``python -m ebt_policy.eval checkpoint=A [checkpoint=B@steps=2 ...]``.

The evaluation plays seeded episodes and compares the policies on the same seeds. It writes
``episodes.jsonl``, ``summary.json``, ``table.md``, videos and a self-contained ``report.html``.
``played.jsonl`` caches the episodes, so that running the same command again resumes. See
`robustness` for ``perturb=`` and `suite` for ``suite=``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ebt_policy.envs.env_spec import EVALUATION_SEED, EnvSpec
from ebt_policy.envs.rollout import batch_observations
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.eval_run import EvalRun
from ebt_policy.evaluation.evaluator import (
    EvaluatedEntry,
    Evaluation,
    ReportFigure,
    ReportVideo,
    run_evaluation,
)
from ebt_policy.evaluation.statistics import percentiles
from ebt_policy.evaluation.terminal import print_markdown
from ebt_policy.policies.base import Policy
from ebt_policy.policies.cached_rollouts import EpisodeRows, play_jobs, rollout_jobs
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.energy_slice import slice_energy
from ebt_policy.policies.entries import PolicyEntry, check_envs, load_policy_entries
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.figures import (
    chunk_picture,
    energy_landscape,
    energy_over_descent,
    score_histogram,
)
from ebt_policy.policies.held_out import HeldOutEvaluation
from ebt_policy.policies.metrics import (
    EPISODE_KEYS,
    POLICY_REPORT,
    entry_summary,
    pair_entries,
    write_comparison,
)
from ebt_policy.policies.task_config import PolicyTaskConfig

console = Console()
LATENCY_CALLS = 200  # enough calls that the 99th percentile is not the slowest one
CACHE = "played.jsonl"

Evaluated = EvaluatedEntry[PolicyEntry, EnvSpec, EpisodeRows]


def evaluate_policies(
    checkpoints: Sequence[str],
    config: EvalConfig,
    *,
    output: Path,
    device: torch.device,
    command: str,
) -> dict[str, Any]:
    """Play episodes with several policies, compare them and write a report.

    Policies without an environment are compared on held-out episodes instead (see `held_out`).

    Args:
        checkpoints: ``RUN[@name=value,...]`` of each entry. A ``*`` in RUN matches the training
            runs of one entry.
        config: the episodes.
        output: folder of the results.
        device: device of the policies.
        command: the command as the user typed it.

    Returns:
        The content of ``summary.json``.

    Raises:
        CheckpointError, ConfigError: before any episode is played.
    """
    entries = load_policy_entries(checkpoints, device, allow_pickle=config.allow_pickle)
    run = EvalRun(output, device, command)
    without_env = [entry.name for entry in entries if not entry.has_env]
    if len(without_env) == len(entries):
        return run_evaluation(HeldOutEvaluation(entries[0], output), entries, run)
    if without_env:
        raise ConfigError(
            f"{without_env[0]} has no environment, but other entries have one; evaluate them "
            "separately."
        )
    check_envs(entries, videos=config.videos > 0)
    return run_evaluation(PolicyEvaluation(config, entries[0]), entries, run)


NO_VIDEOS = (
    "There are no videos, because the environment does not declare the render mode rgb_array."
)


class PolicyEvaluation(Evaluation[PolicyEntry, EnvSpec, EpisodeRows]):
    """Evaluation of policies by the scores of their episodes.

    Args:
        config: the episodes.
        first: entry whose task provides the title and the time limit in the report.
    """

    spec = POLICY_REPORT

    def __init__(self, config: EvalConfig, first: PolicyEntry) -> None:
        self.config = config
        task = PolicyTaskConfig.from_config(first.model.config)
        spec = task.env_spec()
        self.title, self.max_steps = task.name, spec.max_steps
        self.renders = spec.renders

    def load_eval_set(self, entry: PolicyEntry, run: EvalRun) -> EnvSpec:
        return entry.env_spec

    def measure_all(
        self, entries: Sequence[PolicyEntry], eval_sets: Sequence[EnvSpec], run: EvalRun
    ) -> list[EpisodeRows]:
        """Play all entries with the same worker processes, under one progress bar."""
        jobs = [
            rollout_jobs(entry, entry.task_name, spec)
            for entry, spec in zip(entries, eval_sets, strict=True)
        ]
        episodes = play_jobs(list(chain(*jobs)), self.config, run.output, CACHE, EPISODE_KEYS)
        return [
            [
                row | {"train_seed": job.policy.config.get("seed")}
                for job in entry_jobs
                for row in episodes[job.key]
            ]
            for entry_jobs in jobs
        ]

    def summarize(
        self, entry: PolicyEntry, eval_set: EnvSpec, result: EpisodeRows, run: EvalRun
    ) -> dict[str, Any]:
        summary = entry_summary(entry.name, entry.metadata(), result, run.command)
        # Rollouts measure batched latency, but a robot predicts with a batch of one.
        summary["latency_ms"] = batch_one_latency(entry.model, eval_set, self.config.seed)
        return summary

    def pair(self, evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
        """Return paired differences between entries that played the same episodes."""
        return pair_entries(
            [(item.summary, item.result) for item in evaluated],
            [tuple(item.entry.runs) for item in evaluated],
        )

    def write(
        self, comparison: dict[str, Any], evaluated: Sequence[Evaluated], output: Path
    ) -> None:
        """Write ``episodes.jsonl``, ``table.md`` and ``summary.json``; print the table."""
        write_comparison(output, comparison, [(item.summary, item.result) for item in evaluated])
        print_markdown((output / "table.md").read_text(), console)

    def figures(
        self, evaluated: Sequence[Evaluated], run: EvalRun
    ) -> tuple[list[ReportFigure], list[ReportVideo]]:
        scores = score_histogram([(item.summary, item.result) for item in evaluated])
        figures: list[ReportFigure] = [("Scores", "Best reward of each episode.", scores)]
        for item in evaluated:
            if isinstance(item.entry.model, EnergyPolicy):
                figures += energy_figures(item.entry.name, item.entry.model, item.eval_set)
                break
        videos: list[ReportVideo] = [
            (f"{item.entry.name}, seed {row['seed']}, score {row['score']:.2f}", row["video"])
            for item in evaluated
            for row in item.result
            if row["video"]
        ]
        return figures, videos

    def training_runs(self, entries: Sequence[PolicyEntry]) -> list[Path]:
        """Return the first run of each entry."""
        return [entry.runs[0] for entry in entries]

    def notes(self, run: EvalRun) -> list[str]:
        return [
            f"An episode has at most {self.max_steps} steps; its score is the highest reward.",
            "Latency is the time to predict one chunk at batch size 1 on the evaluation device.",
            *([] if self.renders else [NO_VIDEOS] * (self.config.videos > 0)),
            *super().notes(run),
        ]


def batch_one_latency(policy: Policy, spec: EnvSpec, seed: int) -> dict[str, float]:
    """Return p50, p95 and p99 of the latency of one chunk at batch size 1, in milliseconds."""
    env = spec.make()
    first, _ = env.reset(seed=seed)
    env.close()
    obs = batch_observations([spec.stack_history([first] * spec.n_obs_steps)])
    times = []
    for call in range(LATENCY_CALLS + 3):
        generator = torch.Generator().manual_seed(call)
        start = time.perf_counter()
        policy.predict_chunk(obs, generator=generator).actions.cpu()
        times.append((time.perf_counter() - start) * 1e3)
    return percentiles(times[3:])  # the first calls warm up


def energy_figures(name: str, policy: EnergyPolicy, spec: EnvSpec) -> list[ReportFigure]:
    """Return figures of the energy landscape at the start of an episode.

    Args:
        name: name of the policy's entry.
    """
    env = spec.make()
    first, _ = env.reset(seed=EVALUATION_SEED)
    # Environments with `draw_plan` have actions that are positions in the rendered frame.
    seen_from_above = hasattr(env.unwrapped, "draw_plan")
    env.close()
    obs = batch_observations([spec.stack_history([first] * spec.n_obs_steps)])
    energy = slice_energy(policy, obs)
    axes = ("first principal axis of the candidates", "second principal axis")
    figures: list[ReportFigure] = []
    if seen_from_above:
        env = spec.make(render_mode="rgb_array")
        env.reset(seed=EVALUATION_SEED)
        frame: Any = env.render()
        env.close()
        figures.append(
            (
                "Candidate chunks",
                f"Final candidates of {len(energy.energies)} descents of {name}.",
                chunk_picture(frame, energy.chunks[-1], energy.best, energy.energies),
            )
        )
    return [
        *figures,
        (
            "Energy landscape",
            "The plane through the selected chunk in which candidates differ most, with three "
            "descents.",
            energy_landscape(
                energy.x, energy.y, energy.energy, energy.paths[:3], energy.paths[:, -1], axes
            ),
        ),
        (
            "Energy over descent",
            "Energy of the candidates during the descent, for one observation.",
            energy_over_descent({name: energy.trace}),
        ),
    ]
