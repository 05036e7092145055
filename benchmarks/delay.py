"""What a slow policy costs: ``python -m benchmarks.delay [runs=runs/push_t/ebt-xs-seed0]``.

Settings: runs (checkpoints, separated by semicolons; a * stands for training runs), episodes (50),
robot (sim_push_t), parallel (2), folder (runs/delay). Runs the control loop on a simulated clock,
on which a prediction takes 0 to 400 ms, whatever it takes here: with blocking execution,
asynchronously without freezing, and with a frozen prefix, from noise and from the chunk before.
Writes ``docs/results/delay.json`` and ``docs/assets/delay.svg``. It may be repeated after a kill.
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

from benchmarks.settings import command, settings, store
from ebt_policy.evaluation.contestants import load_contestants, matching_runs, parse_checkpoint
from ebt_policy.evaluation.stats import mean_ci
from ebt_policy.evaluation.study_figures import delay_curves, save_figure
from envs.rollout import rollout
from envs.spec import EVALUATION_SEED
from real_robot.background import SimulatedBackground
from real_robot.clock import SimulatedClock
from real_robot.planner import Execution, Planner
from real_robot.robots import load_robot
from real_robot.session import Session, shapes_of, tick_s

DELAYS_MS = (0, 50, 100, 150, 200, 300, 400)
WAYS = {
    "blocking": Execution(mode="blocking"),
    "asynchronous": Execution(mode="async"),
    "frozen prefix": Execution(mode="frozen"),
    "frozen prefix, warm start": Execution(mode="frozen", warm=True),
}


def play(checkpoint: str, robot_name: str, way: str, delay_ms: float, episodes: int) -> list[dict]:
    """Episodes of one training run with one way of execution and one delay."""
    torch.set_num_threads(1)
    policy = load_contestants([checkpoint], torch.device("cpu"))[0].policy
    robot, clock = load_robot(robot_name), SimulatedClock()
    driver = robot.connect(clock)
    background = SimulatedBackground(clock, lambda: delay_ms / 1e3)
    planner = Planner(policy, robot.safety, tick_s(robot, 1.0), background, clock, WAYS[way])
    session = Session(robot, driver, planner, clock, shapes_of(policy), heart=False)
    session.prepare()
    rows = []
    for seed in range(EVALUATION_SEED, EVALUATION_SEED + episodes):
        row = session.episode(seed).summary()
        keep = ("seed", "score", "success", "starved", "clamped", "seam_jump", "seam_kink", "ended")
        rows.append({key: row[key] for key in keep})
    session.close()
    return rows


def offline(checkpoint: str, episodes: int) -> list[dict]:
    """The same episodes in steps, without limits or time."""
    torch.set_num_threads(1)
    one = load_contestants([checkpoint], torch.device("cpu"))[0]
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + episodes)
    found = rollout(one.policy, one.env_spec, seeds, workers=2)
    return [{"seed": r.seed, "score": r.score, "success": r.success} for r in found]


def summarize(runs: list[list[dict]]) -> dict[str, Any]:
    """Means with intervals over training runs and episodes."""
    table = {
        key: np.array([[float(row[key] or 0.0) for row in rows] for rows in runs])
        for key in runs[0][0]
        if key not in ("seed", "ended")
    }
    held = sum(row.get("ended") in ("hold", "fault") for rows in runs for row in rows)
    return {key: mean_ci(values) for key, values in table.items()} | {"held": held}


def main() -> None:
    given = settings(
        runs="runs/push_t/ebt-xs-seed0", episodes=50, robot="sim_push_t", parallel=2,
        folder="runs/delay",
    )  # fmt: skip
    folder = Path(given.folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for text in given.runs.split(";"):
        path, changes = parse_checkpoint(text)
        tail = "@" + ",".join(f"{k}={v}" for k, v in changes.items()) if changes else ""
        runs = [f"{run}{tail}" for run in matching_runs(path)]
        jobs = [(way, ms, run) for way in WAYS for ms in DELAYS_MS for run in runs]
        done: dict[tuple, list[dict]] = {}
        with ProcessPoolExecutor(given.parallel) as pool:
            waiting = {}
            for way, ms, run in jobs:
                if "warm" in way and "ebt" not in Path(run.partition("@")[0]).name:
                    continue
                kept = folder / f"{run} {way} {ms} {given.episodes}.json".replace("/", "_")
                if kept.exists():
                    done[way, ms, run] = json.loads(kept.read_text())
                else:
                    job = pool.submit(play, run, given.robot, way, ms, given.episodes)
                    waiting[way, ms, run] = (job, kept)
            for key in track(list(waiting), description=text, disable=not waiting):
                job, kept = waiting[key]
                done[key] = job.result()
                kept.write_text(json.dumps(done[key]))
        without = summarize([offline(run, given.episodes) for run in runs])
        for way in WAYS:
            for ms in DELAYS_MS:
                if rows := [done[way, ms, run] for run in runs if (way, ms, run) in done]:
                    entry = {"policy": text, "way": way, "execution": asdict(WAYS[way])}
                    entries.append({**entry, "delay_ms": ms, **summarize(rows)})
        entries.append({"policy": text, "way": "offline", "delay_ms": None, **without})
    result = {
        "robot": given.robot,
        "episodes": given.episodes,
        "entries": entries,
        "command": command("delay"),
    }
    store("delay.json", json.dumps(result, indent=1) + "\n")
    save_figure(delay_curves(result), "docs/assets/delay.svg")


if __name__ == "__main__":
    main()
