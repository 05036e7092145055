"""Training in several processes, and killed ones: both end where one undisturbed process does."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import S2, assert_same_end, logged, losses

from ebt_policy.models import load_policy
from ebt_policy.train import train
from ebt_policy.training.checkpoint import load_trainer_state, newest_checkpoint


def launch(arguments: list[str], processes: int) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    command += ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "ebt_policy.train", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), S2], ids=["flow", "s2"])
def test_two_processes_train_as_one(overrides, tiny, tiny_arguments):
    settings = ("train.steps=20", "train.checkpoint_every=10", *overrides)
    launch(tiny_arguments("two", *settings), processes=2)
    one, two = train(tiny("one", *settings)), Path(tiny("two")["run_dir"])
    assert [x["step"] for x in logged(two)] == list(range(1, 21))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4, abs=1e-5)
    for a, b in zip(load_policy(one).parameters(), load_policy(two).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_share_one_plan_of_their_minutes(tiny, tiny_arguments):
    settings = (
        "train.steps=null",
        "train.minutes=0.05",
        "train.warmup_steps=5",
        "train.log_every=1",
    )
    launch(tiny_arguments("two", *settings, "train.checkpoint_every=5"), processes=2)
    folder = newest_checkpoint(Path(tiny("two")["run_dir"]))
    assert folder is not None
    progress = load_trainer_state(folder)["progress"]
    assert progress["step"] == progress["total_steps"] > 5


def _train_quietly(config: dict[str, Any]) -> None:
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        train(config)


@pytest.mark.slow
def test_killed_ten_times_equals_uninterrupted(tiny):
    settings = (*S2, "train.steps=400", "train.checkpoint_every=3")
    straight = train(tiny("straight", *settings))
    config = tiny("killed", *settings, "resume=true")
    run = Path(config["run_dir"])
    # The fork server imports the package once; each training is a process of its own.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["ebt_policy.train"])
    chance, kills, saving = random.Random(0), 0, 0
    while True:
        process = server.Process(target=_train_quietly, args=(config,))
        process.start()
        reached = _log_length(run)
        goal = reached + chance.randint(5, 30) if kills < 10 else math.inf
        while process.is_alive() and _log_length(run) < goal:
            time.sleep(0.001)
        if not process.is_alive():
            break
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        kills += 1
        saving += any((run / "checkpoints").glob(".writing_*"))
    process.join()
    assert process.exitcode == 0 and kills == 10
    print(f"{saving} of {kills} kills fell within the writing of a checkpoint")
    assert [x["step"] for x in logged(run)] == list(range(1, 401))
    assert_same_end(straight, run)


def _log_length(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0
