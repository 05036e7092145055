"""The control loop in real time, with and without ROS 2, compared with the episodes in steps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import StudyContext
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.envs.rollout import rollout
from ebt_policy.evaluation.statistics import mean_ci, paired_difference
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.real_robot.episode_series import HELD

ROBOTS = ("sim_push_t", "ros2_push_t", "sim_lift")


def real_time(context: StudyContext) -> dict[str, Any]:
    """Measure scores and timing of each robot, and scores in steps.

    The study has the options ``episodes``, ``ros`` (False skips ROS 2) and ``lift_checkpoint`` (for
    the simulated arm; "" skips it).

    Raises:
        SystemExit: the folder already contains such a measurement.
    """
    options, (checkpoint,) = context.options, context.checkpoints()
    for robot in ROBOTS:
        if (folder := context.folder / robot).exists():
            sys.exit(f"error: {folder} exists; remove it, or choose another folder=PATH.")
    torch.set_num_threads(1)
    (policy,) = load_policy_entries([checkpoint], torch.device("cpu"))
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + options.episodes)
    scores = [r.score for r in rollout(policy.model, policy.env_spec, seeds, workers=2)]
    entries = {"sim_push_t": run_robot("sim_push_t", checkpoint, options.episodes, context.folder)}
    if options.ros:
        with simulated_node("ros2_push_t"):
            entries["ros2_push_t"] = run_robot(
                "ros2_push_t", checkpoint, options.episodes, context.folder
            )
    for entry in entries.values():
        real_time_scores = [row["score"] for row in entry["each"]]
        entry["minus_in_steps"] = paired_difference(real_time_scores, scores)
    if options.lift_checkpoint:
        entries["sim_lift"] = run_robot(
            "sim_lift", options.lift_checkpoint, options.episodes, context.folder
        )
    return {
        "episodes": options.episodes,
        "in_steps": {"score": mean_ci(scores), "each": scores},
        "entries": entries,
        "command": context.command,
    }


@contextmanager
def simulated_node(name: str) -> Iterator[None]:
    """Run the node of a robot that is simulated behind ROS 2; nothing for other robots."""
    if not name.startswith("ros2_"):
        yield
        return
    command = [sys.executable, "-m", "ebt_policy.real_robot.sim_node", f"robot={name}"]
    node = subprocess.Popen(command)
    try:
        yield
    finally:
        node.terminate()
        node.wait()


def run_arguments(robot: str, checkpoint: str, episodes: int, output: Path) -> list[str]:
    """Return the arguments of ``ebt_policy.real_robot.run``."""
    return [
        f"robot={robot}", f"checkpoint={checkpoint}", f"episodes={episodes}", "keep=all",
        f"output={output}", "live=false", "device=cpu",
    ]  # fmt: skip


def run_robot(robot: str, checkpoint: str, episodes: int, folder: Path) -> dict[str, Any]:
    """Run the control loop and return its summary; a run with a held episode is not an error."""
    output = folder / robot
    arguments = run_arguments(robot, checkpoint, episodes, output)
    command = [sys.executable, "-m", "ebt_policy.real_robot.run", *arguments]
    if (code := subprocess.run(command).returncode) not in (0, HELD):
        raise subprocess.CalledProcessError(code, command)
    return json.loads((output / "summary.json").read_text())
