"""Recovery of every policy: ``python -m benchmarks.recovery [runs=runs/compare] [episodes=50]``.

Plays all perturbations with the runs that ``benchmarks.compare`` trained, several policies one way
each, and writes ``docs/results/recovery.json``. Repeated after a kill it goes on. On two cores it
takes an hour and a half.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from ebt_policy.evaluation.protocol import Protocol
from ebt_policy.recovery import evaluate_recovery
from envs.spec import EVALUATION_SEED

# The first is the one that the others are compared with.
ENTRIES = [
    "ebt_12500-seed*@steps=2,candidates=8",
    "ebt_12500-seed*@steps=2,candidates=1",
    "diffusion-seed*@scheduler=ddim,steps=10",
    "flow_matching-seed*@steps=2",
    "bc-seed*",
    "ibc-seed*",
]


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    runs, episodes = given.pop("runs", "runs/compare"), int(given.pop("episodes", 50))
    folder = Path(given.pop("folder", "runs/recovery"))
    if given:
        sys.exit(f"error: unknown settings {sorted(given)}; there are runs, episodes and folder.")
    evaluate_recovery(
        [f"{runs}/{entry}" for entry in ENTRIES],
        Protocol(episodes, EVALUATION_SEED, videos=1, workers=25),
        "all",
        output=folder,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        command=" ".join(["python -m benchmarks.recovery", *sys.argv[1:]]),
    )
    shutil.copy(folder / "recovery.json", "docs/results/recovery.json")


if __name__ == "__main__":
    main()
