"""The control loop in real time: ``python -m benchmarks.real_time [run=runs/push_t/ebt-xs-seed0]``.

Settings: run (a checkpoint), episodes (20), folder (runs/real_time), ros (1; 0 leaves it out), lift
(a checkpoint of Lift, for the simulated arm; "" leaves it out).
Plays the same seeds of Push-T in steps (as ``ebt_policy.eval`` does), in real time in this process,
and through ROS 2 with the robot as a node in its own process; wants an idle machine, and up to ten
minutes for each of the two. Writes ``docs/results/real_time.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.settings import command, settings, store
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.envs.rollout import rollout
from ebt_policy.evaluation.statistics import mean_ci, paired_difference
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.real_robot.run import HELD


def in_real_time(robot: str, run: str, episodes: int, folder: Path) -> dict[str, Any]:
    """Return what ``ebt_policy.real_robot.run`` measured.

    An episode in which the robot was held counts as played.
    """
    output = folder / robot
    command = [
        sys.executable, "-m", "ebt_policy.real_robot.run", f"robot={robot}", f"checkpoint={run}",
        f"episodes={episodes}", "keep=all", f"output={output}", "live=false", "device=cpu",
    ]  # fmt: skip
    if (code := subprocess.run(command).returncode) not in (0, HELD):
        raise subprocess.CalledProcessError(code, command)
    return json.loads((output / "summary.json").read_text())


def main() -> None:
    given = settings(
        run="runs/push_t/ebt-xs-seed0", episodes=20, folder="runs/real_time", ros=1, lift=""
    )
    for robot in ("sim_push_t", "ros2_push_t", "sim_lift"):
        if (present := Path(given.folder) / robot).exists():
            sys.exit(f"error: {present} exists; remove it, or say another folder=...")
    torch.set_num_threads(1)
    one = load_policy_entries([given.run], torch.device("cpu"))[0]
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + given.episodes)
    steps = [r.score for r in rollout(one.model, one.env_spec, seeds, workers=2)]
    entries = {
        "sim_push_t": in_real_time("sim_push_t", given.run, given.episodes, Path(given.folder))
    }
    if given.ros:
        node = subprocess.Popen(
            [sys.executable, "-m", "ebt_policy.real_robot.sim_node", "robot=ros2_push_t"]
        )
        try:
            entries["ros2_push_t"] = in_real_time(
                "ros2_push_t", given.run, given.episodes, Path(given.folder)
            )
        finally:
            node.terminate()
            node.wait()
    for entry in entries.values():
        scores = [row["score"] for row in entry["each"]]
        entry["minus_in_steps"] = paired_difference(scores, steps)
    if given.lift:
        entries["sim_lift"] = in_real_time(
            "sim_lift", given.lift, given.episodes, Path(given.folder)
        )
    result = {
        "episodes": given.episodes,
        "in_steps": {"score": mean_ci(steps), "each": steps},
        "entries": entries,
        "command": command("real_time"),
    }
    store("real_time.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
