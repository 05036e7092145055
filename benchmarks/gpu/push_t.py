"""Training on Push-T from scratch: score over training time of energy policy and baselines."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import Case

MINUTES = 3.0
RUNS = Path("runs/gpu")
GOAL = 0.99
POLICIES = {
    "energy": ["model=ebt", "model.inference.steps=2", "model.inference.num_candidates=8"],
    "flow matching": [
        "model=flow_matching", "model.inference.steps=2", "model.inference.num_candidates=8",
        "model.inference.select=line_integral",
    ],
    "diffusion": [
        "model=diffusion", "model.inference.scheduler=ddim", "model.inference.steps=4",
        "model.inference.num_candidates=8", "model.inference.select=density",
    ],
}  # fmt: skip
FULL = [
    f"train.minutes={MINUTES}", "train.eval_every=1000", "train.batch_size=256",
    "evaluation.rollout_episodes=50",
]  # fmt: skip
TOY = [
    "task.demos=expert", "train.minutes=null", "train.steps=4", "train.eval_every=2",
    "train.log_every=1", "train.batch_size=8", "train.compile=false", "size=4xs",
    "task.env.max_steps=10", "evaluation.rollout_episodes=1", "evaluation.workers=1",
]  # fmt: skip


def cases(rates: dict[str, dict[str, Any]], toy: bool) -> list[Case]:
    """Return one case for each policy."""
    if toy:
        return [Case("energy", partial(measure, "energy", toy), 60)]
    return [Case(name, partial(measure, name, toy), 60 * MINUTES + 100) for name in POLICIES]


def measure(name: str, toy: bool) -> dict[str, Any]:
    """Train for `MINUTES`; return the score curve and the seconds until the score is `GOAL`."""
    run = RUNS / f"push_t-{name.replace(' ', '_')}{'-toy' * toy}"
    command = [
        sys.executable, "-m", "ebt_policy.train", "task=push_t", f"run_dir={run}", "resume=true",
        "evaluation.episodes=0", *POLICIES[name], *(TOY if toy else FULL),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    curve = rollouts(run / "log.jsonl")
    reached = [point["seconds"] for point in curve if point["score"] >= GOAL]
    return {
        "seconds_to_goal": min(reached, default=None),
        "goal": GOAL,
        "best_score": max(point["score"] for point in curve),
        "curve": curve,
    }


def rollouts(log: Path) -> list[dict[str, float]]:
    """Return score and success over updates and over seconds of training, without evaluation.

    Args:
        log: log of a run that evaluates at steps with a log line.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    return [
        {
            "step": line["step"],
            "seconds": seconds[line["step"]],
            "score": line["rollout_score"],
            "success": line["rollout_success"],
        }
        for line in lines
        if "rollout_score" in line
    ]
