"""Effect of inference delay in the control loop, on a simulated clock.

A prediction takes 0 to 400 ms on this clock, independent of the real latency. Chunks are executed
blocking, asynchronously, or with a frozen prefix. With a frozen prefix, candidates start from noise
or from the last chunk (warm start), or the policy was trained with a committed prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.study import StudyContext
from benchmarks.study_figures import delay_curves
from ebt_policy.envs.rollout import rollout
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.evaluation.figure_style import save_figure
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.evaluation.statistics import mean_ci, paired_differences, success_rate
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.policies.metrics import METRICS
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.episode_runner import EpisodeRunner, observation_shapes, tick_seconds
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.inference_worker import SimulatedWorker
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.robots import load_robot

Rows = list[dict[str, Any]]  # one row for each episode

DELAYS_MS = (0, 100, 200, 300, 400)
WARM_START = "frozen prefix, warm start"  # only for the energy policy, which has a descent
CONDITIONED = "frozen prefix, conditioned on it"
EXECUTION_MODES = {
    "blocking": ExecutionOptions(mode="blocking"),
    "asynchronous": ExecutionOptions(mode="async"),
    "frozen prefix": ExecutionOptions(mode="rtc"),
    WARM_START: ExecutionOptions(mode="rtc", warm=True),
    CONDITIONED: ExecutionOptions(mode="rtc"),
}
EPISODE_KEYS = (
    "seed", "score", "success", "ticks_without_plan", "clamped_ticks", "transition_jump",
    "transition_second_difference", "second_difference", "ended",
)  # fmt: skip


def execution_delay(context: StudyContext) -> dict[str, Any]:
    """Measure scores and transitions of every policy, execution mode and delay; draw the curves.

    Each group of the part is a policy with two entries: trained without and with conditioning on a
    prefix. The study has the options ``robot``, ``episodes`` and ``first_seed``.
    """
    options = context.options
    seeds = range(options.first_seed, options.first_seed + options.episodes)
    cache = ResultCache(context.output / "delay.jsonl", "episodes")
    jobs = [
        (policy, mode, delay_ms, checkpoint)
        for policy, mode, delay_ms in product(context.part.groups, EXECUTION_MODES, DELAYS_MS)
        if mode != WARM_START or policy == "ebt"
        for checkpoint in seed_checkpoints(context, policy, mode == CONDITIONED)
    ]
    episodes: dict[tuple[str, str, float], list[Rows]] = {}
    with ProcessPoolExecutor(options.parallel) as pool:
        pending = []
        for policy, mode, delay_ms, checkpoint in jobs:
            identity = {
                "key": f"{checkpoint} | {mode} | {delay_ms} ms | {options.robot}",
                "checkpoint": fingerprint(parse_checkpoint(checkpoint)[0]),
                "seeds": [seeds.start, seeds.stop],
            }
            future = None
            if cache.get(identity) is None:
                future = pool.submit(play, checkpoint, options.robot, mode, delay_ms, seeds)
            pending.append(((policy, mode, delay_ms), identity, future))
        for key, identity, future in track(pending, description="episodes"):
            if future is not None:
                cache.add(identity, future.result())
            episodes.setdefault(key, []).append(cache.get(identity))
    entries = []
    for policy in context.part.groups:
        for (name, mode, delay_ms), runs in episodes.items():
            if name == policy:
                execution = asdict(EXECUTION_MODES[mode])
                entry = {"policy": policy, "way": mode, "execution": execution}
                entries.append({**entry, "delay_ms": delay_ms, **summarize(runs)})
        checkpoints = seed_checkpoints(context, policy)
        in_steps = summarize([play_in_steps(text, seeds) for text in checkpoints])
        entries.append({"policy": policy, "way": "offline", "delay_ms": None, **in_steps})
    result = {
        "robot": options.robot,
        "seeds": options.seeds,
        "episodes": options.episodes,
        "first_seed": options.first_seed,
        "entries": entries,
        "paired": paired(episodes),
        "command": context.command,
    }
    context.assets.mkdir(parents=True, exist_ok=True)
    save_figure(delay_curves(result), context.assets / "delay.svg")
    return result


def seed_checkpoints(context: StudyContext, policy: str, conditioned: bool = False) -> list[str]:
    """Return the training runs of a policy as values of ``checkpoint=``."""
    checkpoint = context.checkpoints(policy)[int(conditioned)]
    return [checkpoint.replace("*", str(seed)) for seed in range(context.options.seeds)]


def play(checkpoint: str, robot_name: str, mode: str, delay_ms: float, seeds: range) -> Rows:
    """Return the episodes of one training run with one execution mode and one delay.

    Raises:
        RuntimeError: the robot stopped with a fault, after which it plays no further episode.
    """
    torch.set_num_threads(1)
    policy = load_policy_entries([checkpoint], torch.device("cpu"))[0].model
    robot, clock = load_robot(robot_name), SimulatedClock()
    driver = robot.make_driver(clock)
    worker = SimulatedWorker(clock, lambda: delay_ms / 1e3)
    planner = Planner(
        policy, robot.safety, tick_seconds(robot, 1.0), worker, clock, EXECUTION_MODES[mode]
    )
    shapes = observation_shapes(policy)
    runner = EpisodeRunner(robot, driver, planner, clock, shapes, watchdog=False)
    runner.prepare()
    rows = []
    for seed in seeds:
        row = runner.run_episode(seed).summary()
        if row["ended"] == "fault":
            raise RuntimeError(f"{checkpoint}: the robot stopped with a fault in episode {seed}.")
        rows.append({key: row[key] for key in EPISODE_KEYS})
    runner.close()
    return rows


def play_in_steps(checkpoint: str, seeds: range) -> Rows:
    """Return the same episodes in steps: the environment waits, and there are no limits."""
    torch.set_num_threads(1)
    entry = load_policy_entries([checkpoint], torch.device("cpu"))[0]
    results = rollout(entry.model, entry.env_spec, seeds, workers=2)
    return [{"seed": r.seed, "score": r.score, "success": r.success} for r in results]


def paired(episodes: Mapping[tuple[str, str, float], Sequence[Rows]]) -> list[dict[str, Any]]:
    """Return differences between modes of a policy, and between policies with the same mode.

    Args:
        episodes: policy, mode and delay -> the episodes of each training run.
    """
    pairs = []
    for delay_ms, metric in product(dict.fromkeys(key[2] for key in episodes), METRICS):
        values = {
            key[:2]: [[float(row[metric]) for row in rows] for rows in runs]
            for key, runs in episodes.items()
            if key[2] == delay_ms
        }
        names = {f"{policy}, {mode}": (policy, mode) for policy, mode in values}
        differences = paired_differences(
            {name: values[key] for name, key in names.items()},
            {name: (policy, mode == CONDITIONED) for name, (policy, mode) in names.items()},
        )
        for a, b in combinations(names, 2):
            if set(names[a]) & set(names[b]):
                pair = {"delay_ms": delay_ms, "a": a, "b": b, "metric": metric}
                pairs.append(pair | differences[a, b])
    return pairs


def summarize(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return means with intervals over training runs and episodes."""
    table = {
        key: np.array([[float(row[key] or 0.0) for row in rows] for rows in runs])
        for key in runs[0][0]
        if key not in ("seed", "ended")
    }
    held = sum(row.get("ended") in ("hold", "fault") for rows in runs for row in rows)
    means = {key: mean_ci(values) for key, values in table.items()}
    return means | {"success": success_rate(table["success"]), "held": held}
