"""What a slow policy costs: ``python -m benchmarks.delay [seeds=3] [episodes=50] [parallel=2]``.

Trains the energy policy and flow matching on Push-T, with and without conditioning on the
committed actions (``task.max_prefix_len``), and runs the control loop on a simulated clock. There
a prediction takes 0 to 400 ms, whatever it takes here: with blocking execution, asynchronously
without freezing, and with a frozen prefix, from noise and from the chunk before. Writes
``docs/results/delay.json`` and ``docs/assets/delay.svg``. It may be repeated after a kill; on two
cores it takes two hours.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.runs import train_all
from benchmarks.settings import command, settings, store
from benchmarks.study_figures import delay_curves
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.envs.rollout import rollout
from ebt_policy.evaluation.figure_style import save_figure
from ebt_policy.evaluation.statistics import mean_ci, success_rate
from ebt_policy.io.output import write_atomic
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.episode_runner import Session, shapes_of, tick_s
from ebt_policy.real_robot.inference_worker import SimulatedBackground
from ebt_policy.real_robot.planner import Execution, Planner
from ebt_policy.real_robot.robots import load_robot

DELAYS_MS = (0, 50, 100, 150, 200, 300, 400)
WAYS = {
    "blocking": Execution(mode="blocking"),
    "asynchronous": Execution(mode="async"),
    "frozen prefix": Execution(mode="frozen"),
    "frozen prefix, warm start": Execution(mode="frozen", warm=True),
    "frozen prefix, told of it": Execution(mode="frozen"),
}
UPDATES = ["train.minutes=null", "train.steps=12500"]
TOLD = "task.max_prefix_len=8"
RUNS = {  # and how they predict
    "ebt": ([], ""),
    "ebt_told": ([TOLD], ""),
    "flow_matching": (["model=flow_matching"], "@steps=2"),
    "flow_matching_told": (["model=flow_matching", TOLD], "@steps=2"),
}


def play(checkpoint: str, robot_name: str, way: str, delay_ms: float, episodes: int) -> list[dict]:
    """Episodes of one training run with one way of execution and one delay."""
    torch.set_num_threads(1)
    policy = load_policy_entries([checkpoint], torch.device("cpu"))[0].model
    robot, clock = load_robot(robot_name), SimulatedClock()
    driver = robot.connect(clock)
    background = SimulatedBackground(clock, lambda: delay_ms / 1e3)
    planner = Planner(policy, robot.safety, tick_s(robot, 1.0), background, clock, WAYS[way])
    session = Session(robot, driver, planner, clock, shapes_of(policy), heart=False)
    session.prepare()
    rows = []
    for seed in range(EVALUATION_SEED, EVALUATION_SEED + episodes):
        row = session.episode(seed).summary()
        keep = (
            "seed", "score", "success", "starved", "clamped", "seam_jump", "seam_kink", "kink",
            "ended",
        )  # fmt: skip
        rows.append({key: row[key] for key in keep})
    session.close()
    return rows


def offline(checkpoint: str, episodes: int) -> list[dict]:
    """The same episodes in steps, without limits or time."""
    torch.set_num_threads(1)
    one = load_policy_entries([checkpoint], torch.device("cpu"))[0]
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + episodes)
    found = rollout(one.model, one.env_spec, seeds, workers=2)
    return [{"seed": r.seed, "score": r.score, "success": r.success} for r in found]


def summarize(runs: list[list[dict]]) -> dict[str, Any]:
    """Means with intervals over training runs and episodes."""
    table = {
        key: np.array([[float(row[key] or 0.0) for row in rows] for rows in runs])
        for key in runs[0][0]
        if key not in ("seed", "ended")
    }
    held = sum(row.get("ended") in ("hold", "fault") for rows in runs for row in rows)
    means = {key: mean_ci(values) for key, values in table.items()}
    return means | {"success": success_rate(table["success"]), "held": held}


def run_of(policy: str, way: str, seed: int, folder: Path) -> str | None:
    """The training run, and how it predicts, that plays one way; None if the policy does not."""
    if "warm" in way and policy != "ebt":
        return None
    name = f"{policy}_told" if "told" in way else policy
    return f"{folder / name}-seed{seed}{RUNS[name][1]}"


def main() -> None:
    given = settings(seeds=3, episodes=50, robot="sim_push_t", parallel=2, folder="runs/delay")
    folder, seeds = Path(given.folder), range(given.seeds)
    train_all({k: [*UPDATES, *how] for k, (how, _) in RUNS.items()}, seeds, folder, given.parallel)
    policies = [name for name in RUNS if "told" not in name]
    jobs = [
        (policy, way, ms, run)
        for policy in policies
        for way in WAYS
        for ms in DELAYS_MS
        for seed in seeds
        if (run := run_of(policy, way, seed, folder)) is not None
    ]
    done: dict[tuple, list[list[dict]]] = {}
    with ProcessPoolExecutor(given.parallel) as pool:
        waiting = []
        for policy, way, ms, run in jobs:
            words = f"{Path(run).name} {way} {ms} {given.episodes}.json".replace("/", "_")
            kept = folder / "played" / words
            found = None if kept.exists() else (play, run, given.robot, way, ms, given.episodes)
            waiting.append((policy, way, ms, kept, found and pool.submit(*found)))
        (folder / "played").mkdir(exist_ok=True)
        for policy, way, ms, kept, job in track(waiting, description="playing"):
            if job is not None:
                write_atomic(kept, json.dumps(job.result()))
            done.setdefault((policy, way, ms), []).append(json.loads(kept.read_text()))
    entries = []
    for policy in policies:
        for way in WAYS:
            for ms in DELAYS_MS:
                if rows := done.get((policy, way, ms)):
                    how = asdict(WAYS[way])
                    entry = {"policy": policy, "way": way, "execution": how, "delay_ms": ms}
                    entries.append({**entry, **summarize(rows)})
        runs = [run_of(policy, "", seed, folder) for seed in seeds]
        without = summarize([offline(str(run), given.episodes) for run in runs])
        entries.append({"policy": policy, "way": "offline", "delay_ms": None, **without})
    result = {
        "robot": given.robot,
        "seeds": given.seeds,
        "episodes": given.episodes,
        "entries": entries,
        "command": command("delay"),
    }
    store("delay.json", json.dumps(result, indent=1) + "\n")
    save_figure(delay_curves(result), "docs/assets/delay.svg")


if __name__ == "__main__":
    main()
