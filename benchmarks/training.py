"""Composition of training configurations, and training of a study's runs in child processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.study import Recording, TrainingCommand
from ebt_policy import compose
from ebt_policy.cli import composition
from ebt_policy.training.overrides import drop_unused_sections


def compose_config(*arguments: str) -> dict[str, Any]:
    """Return the configuration that ``ebt_policy.train`` composes from its arguments."""
    return drop_unused_sections(composition.compose_config("train", arguments))


def record(recording: Recording, folder: Path) -> None:
    """Record demonstrations if their file does not exist."""
    if not recording.path(folder).exists():
        subprocess.run(recording.command(folder), check=True)


def train(command: TrainingCommand, threads: int) -> None:
    """Start or resume a training run; its output is appended to ``RUN-seedSEED.log``.

    Args:
        command: the training run.
        threads: number of PyTorch's threads if ``OMP_NUM_THREADS`` is not set.

    Raises:
        SystemExit: the training run failed.
    """
    log_file = command.run_dir.with_name(f"{command.run_dir.name}.log")
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a") as log:
        process = subprocess.run(
            [sys.executable, "-m", "ebt_policy.train", *command.arguments],
            stdout=log, stderr=log, env={"OMP_NUM_THREADS": str(threads), **os.environ},
        )  # fmt: skip
    if process.returncode:
        raise SystemExit(f"error: training {command.run_dir.name} failed; see {log_file}.")
    print(f"trained {command.run_dir.name}", flush=True)


def train_all(stages: Sequence[Sequence[TrainingCommand]], parallel: int) -> None:
    """Train one stage after the other, with ``parallel`` runs of a stage at a time.

    Raises:
        SystemExit: a training run failed; no further run is started.
    """
    threads = max((os.cpu_count() or 1) // parallel, 1)
    for stage in stages:
        with ThreadPoolExecutor(parallel) as executor:
            trainings = [executor.submit(train, command, threads) for command in stage]
            try:
                for training in as_completed(trainings):
                    training.result()
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise


def compose_products(products: Mapping[str, Sequence[str]], folder: Path, seeds: int) -> None:
    """Write the product of each training seed into ``PRODUCT-seedSEED``.

    Args:
        products: name -> runs of its members.
        folder: folder of the runs.
        seeds: number of training seeds.
    """
    for name, members in products.items():
        for seed in range(seeds):
            output = folder / f"{name}-seed{seed}"
            shutil.rmtree(output, ignore_errors=True)  # The members may be trained again.
            compose.run({
                "checkpoint": [f"{folder / member}-seed{seed}" for member in members],
                "composition": "product", "weights": None, "output": str(output),
            })  # fmt: skip
