"""Training runs of several models and seeds, and the evaluation of policies as one table."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.settings import DEVICE, store
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies


def train(name: str, overrides: Sequence[str], seed: int, folder: Path, threads: int) -> None:
    """Train one model in a process of its own, or go on with it; on Push-T unless they say.

    A number of threads that the environment gives goes before `threads`.
    """
    run = f"{name}-seed{seed}"
    task = [] if any(override.startswith("task=") for override in overrides) else ["task=push_t"]
    plays = not {"task=text", "task=image", "task=video"} & set(overrides)
    shown = "evaluation.episodes=0" if plays else "evaluation.final=false"
    command = [
        sys.executable, "-m", "ebt_policy.train", *task, f"run_dir={folder / run}",
        "resume=true", "train.rollout_every=0", shown, f"seed={seed}", *overrides,
    ]  # fmt: skip
    (folder / run).parent.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run}.log").open("a") as log:
        done = subprocess.run(
            command, stdout=log, stderr=log, env={"OMP_NUM_THREADS": str(threads), **os.environ}
        )
    if done.returncode:
        raise SystemExit(f"error: training {run} failed; see {log.name}")
    print(f"trained {run}", flush=True)


def train_all(runs: Mapping[str, Sequence[str]], seeds: range, folder: Path, parallel: int) -> None:
    """Train every policy (name -> overrides) with every seed, `parallel` at a time."""
    threads = max((os.cpu_count() or 1) // parallel, 1)
    jobs = [(name, seed) for seed in seeds for name in runs]
    with ThreadPoolExecutor(parallel) as executor:
        list(executor.map(lambda job: train(job[0], runs[job[0]], job[1], folder, threads), jobs))


def entry_of_runs(entry: str) -> str:
    """``ebt@steps=2`` -> ``ebt-seed*@steps=2``, all training runs of a policy as one entry."""
    model, at, changes = entry.partition("@")
    return f"{model}-seed*{at}{changes}"


def evaluate_all(
    name: str, entries: Sequence[str], folder: Path, protocol: EvalConfig, command: str
) -> None:
    """Evaluate entries of the runs in a folder; ``docs/results/NAME.json`` and ``.md``."""
    output = folder / "evaluation" / name
    evaluate_policies(
        [str(folder / entry_of_runs(entry)) for entry in entries],
        protocol,
        output=output,
        device=DEVICE,
        command=command,
    )
    store(f"{name}.json", (output / "summary.json").read_text())
    store(f"{name}.md", (output / "table.md").read_text())
