"""The README's table: ``python -m benchmarks.compare [minutes=10] [seeds=3] [parallel=2]``.

Trains every policy on Push-T with several training seeds, each for the same wall-clock minutes,
``parallel`` at a time on an equal share of the cores, plays the same ``episodes=100`` with each,
and writes ``docs/results/push_t.json`` and ``docs/results/push_t.md``. Runs go to ``runs/compare``
and are gone on with there, so the command may be repeated after a kill; a run of other settings is
refused. On two cores it takes two hours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.settings import DEVICE, command, settings
from ebt_policy.eval import evaluate
from ebt_policy.evaluation.protocol import Protocol
from envs.spec import EVALUATION_SEED

RUNS = {
    "ebt": [],
    # As many updates as the baselines make in ten minutes.
    "ebt_12500": ["train.minutes=null", "train.steps=12500"],
    "diffusion": ["model=diffusion"],
    "flow_matching": ["model=flow_matching"],
    "bc": ["model=bc"],
}
ENTRIES = [
    "ebt@steps=2,candidates=8", "ebt@steps=4,candidates=8", "ebt@steps=2,candidates=1",
    "ebt_12500@steps=2,candidates=8", "ebt_12500@steps=4,candidates=8",
    "ebt_12500@steps=2,candidates=1", "ebt_12500@steps=4,candidates=1",
    "flow_matching@steps=2", "flow_matching@steps=4", "flow_matching@steps=8",
    "diffusion@scheduler=ddpm,steps=100", "diffusion@scheduler=ddim,steps=10",
    "diffusion@scheduler=ddim,steps=4", "diffusion@scheduler=ddim,steps=2",
    "bc",
]  # fmt: skip


def train(name: str, overrides: list[str], seed: int, folder: Path, threads: int) -> None:
    """Train one policy in a process of its own, or go on with it."""
    run = f"{name}-seed{seed}"
    command = [
        sys.executable, "-m", "ebt_policy.train", "task=push_t", f"run_dir={folder / run}",
        "resume=true", "train.rollout_every=0", "evaluation.episodes=0", f"seed={seed}", *overrides,
    ]  # fmt: skip
    with (folder / f"{run}.log").open("a") as log:
        done = subprocess.run(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
    if done.returncode:
        raise SystemExit(f"error: training {run} failed; see {log.name}")
    print(f"trained {run}", flush=True)


def train_all(runs: dict[str, list[str]], seeds: range, folder: Path, parallel: int) -> None:
    """Train every policy (name -> overrides) with every seed, `parallel` at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // parallel, 1)
    jobs = [(name, seed) for seed in seeds for name in runs]
    with ThreadPoolExecutor(parallel) as executor:
        list(executor.map(lambda job: train(job[0], runs[job[0]], job[1], folder, threads), jobs))


def entry_of_runs(entry: str) -> str:
    """``ebt@steps=2`` -> ``ebt-seed*@steps=2``, all training runs of a policy as one entry."""
    model, at, changes = entry.partition("@")
    return f"{model}-seed*{at}{changes}"


def main() -> None:
    given = settings(minutes=10.0, seeds=3, parallel=2, episodes=100, folder="runs/compare")
    folder = Path(given.folder)
    runs = {name: [f"train.minutes={given.minutes}", *changes] for name, changes in RUNS.items()}
    train_all(runs, range(given.seeds), folder, given.parallel)
    output = folder / "evaluation"
    evaluate(
        [str(folder / entry_of_runs(entry)) for entry in ENTRIES],
        Protocol(episodes=given.episodes, seed=EVALUATION_SEED, videos=1, workers=8),
        output=output,
        device=DEVICE,
        command=command("compare"),
    )
    results = Path("docs/results")
    results.mkdir(parents=True, exist_ok=True)
    shutil.copy(output / "summary.json", results / "push_t.json")
    shutil.copy(output / "table.md", results / "push_t.md")


if __name__ == "__main__":
    main()
