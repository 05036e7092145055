"""Play episodes with policies, compare them on equal seeds, and report."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from ebt_policy.envs.env_spec import EVALUATION_SEED, EnvSpec
from ebt_policy.envs.rollout import batch_observations
from ebt_policy.evaluation.contestants import (
    EvalEntry,
    check_envs,
    load_contestants,
)
from ebt_policy.evaluation.figures import training_curve
from ebt_policy.evaluation.report import write_report
from ebt_policy.evaluation.statistics import percentiles
from ebt_policy.policies import Policy
from ebt_policy.policies.cached_rollouts import pieces_of, play_pieces
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.energy_slice import energy_plane
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.figures import (
    chunk_picture,
    energy_landscape,
    energy_over_descent,
    score_histogram,
)
from ebt_policy.policies.metrics import EPISODE_KEYS, POLICIES, entry_summary, write_results
from ebt_policy.policies.task_config import PolicyTaskConfig

console = Console()
LATENCY_CALLS = 200  # so that the 99th percentile is not simply the slowest


def batch_one_latency(policy: Policy, spec: EnvSpec, seed: int) -> dict[str, float]:
    """Milliseconds of one chunk for one robot, p50, p95 and p99 of repeated calls."""
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


def evaluate_policies(
    checkpoints: list[str],
    protocol: EvalConfig,
    *,
    output: Path,
    device: torch.device,
    command: str,
) -> dict[str, Any]:
    """Play, compare, report; returns what ``summary.json`` holds.

    Raises:
        CheckpointError, ConfigError: before anything is played.
    """
    contestants = load_contestants(checkpoints, device)
    check_envs(contestants, videos=protocol.videos > 0)
    pieces = {one.name: pieces_of(one, one.task_name, one.env_spec) for one in contestants}
    played = play_pieces(
        list(chain(*pieces.values())), protocol, output, "played.jsonl", EPISODE_KEYS
    )
    entries: list[Any] = []
    for one in contestants:
        rows = [
            row | {"train_seed": piece.policy.config.get("seed")}
            for piece in pieces[one.name]
            for row in played[piece.key]
        ]
        summary = entry_summary(one.name, one.info(), rows, command)
        # The rollouts' latency is a batch's; a robot waits for a batch of one.
        summary["latency_ms"] = batch_one_latency(one.policy, one.env_spec, protocol.seed)
        entries.append((summary, rows))
    result = write_results(output, entries)
    console.print(Markdown((output / "table.md").read_text()))
    report = _write_policy_report(contestants, entries, result, output, command)
    console.print(f"report: {report}", markup=False, soft_wrap=True)
    return result


def _write_policy_report(
    contestants: list[EvalEntry], entries: list[Any], result: dict[str, Any], output: Path,
    command: str,
) -> Path:  # fmt: skip
    task = PolicyTaskConfig.of(contestants[0].policy.config)
    figures = [("Scores", "Best reward of each episode.", score_histogram(entries))]
    energetic = [one for one in contestants if isinstance(one.policy, EnergyPolicy)]
    if energetic:
        figures += _energy_slice_figures(energetic[0])
    shown = set()
    for one in contestants:
        log = one.runs[0] / "log.jsonl"
        if log.is_file() and log not in shown:
            shown.add(log)
            try:
                figures.append((f"Training of {one.runs[0].name}", "", training_curve(log)))
            except ValueError as error:  # say, a run killed before its first line
                console.print(f"no training curve: {error}", markup=False, soft_wrap=True)
    videos = [
        (f"{summary['name']}, seed {row['seed']}, score {row['score']:.2f}", row["video"])
        for summary, rows in entries
        for row in rows
        if row["video"]
    ]
    return write_report(
        output / "report.html",
        title=task.name,
        comparison=result,
        shown=POLICIES,
        figures=figures,
        videos=videos,
        notes=[
            f"At most {task.env_spec().max_steps} steps an episode; its score is the best reward "
            "of any step.",
            "Latency is that of one chunk at batch size 1, on the device of the evaluation.",
            f"Made by: {command}",
        ],
    )


def _energy_slice_figures(one: EvalEntry) -> list[tuple[str, str, Figure]]:
    """Pictures of the landscape at the start of an episode."""
    assert isinstance(one.policy, EnergyPolicy)
    spec = one.env_spec
    env = spec.make()
    first, _ = env.reset(seed=EVALUATION_SEED)
    from_above = hasattr(env.unwrapped, "draw_plan")  # actions are places in the picture
    env.close()
    plane = energy_plane(
        one.policy, batch_observations([spec.stack_history([first] * spec.n_obs_steps)])
    )
    axes = ("first principal axis of the candidates", "second principal axis")
    figures = []
    if from_above:
        env = spec.make(render_mode="rgb_array")
        env.reset(seed=EVALUATION_SEED)
        frame: Any = env.render()
        env.close()
        figures.append(
            (
                "Candidate chunks",
                f"Where {len(plane.energies)} descents of {one.name} end.",
                chunk_picture(frame, plane.chunks[-1], plane.best, plane.energies),
            )
        )
    return [
        *figures,
        (
            "Energy landscape",
            "The plane through the chosen chunk in which candidates differ most, with three "
            "descents.",
            energy_landscape(
                plane.x, plane.y, plane.energy, plane.paths[:3], plane.paths[:, -1], axes
            ),
        ),
        (
            "Energy over descent",
            "Energy of candidates while they descend, for one observation.",
            energy_over_descent({one.name: plane.trace}),
        ),
    ]
