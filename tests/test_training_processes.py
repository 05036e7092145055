"""Training in several processes, and with kills, ends like one uninterrupted process."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from training_runs import S2, assert_same_end, logged, losses

from ebt_policy.errors import ConfigError
from ebt_policy.policies import load_policy
from ebt_policy.train import train
from ebt_policy.training.checkpoint import load_trainer_state, newest_checkpoint
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.processes import devices, join_processes
from ebt_policy.training.trainer import Trainer

# As in the how-to pages. torchrun finds a free port, so trainings can run in parallel.
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def start(launcher: Sequence[str], arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start a training with a launcher, such as `TWO`."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "ebt_policy.train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train_in_two(arguments: Sequence[str]) -> str:
    """Train in two processes and return their output."""
    process = start(TWO, arguments)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert output.count("2 processes") == 1, "only the main process prints"
    return output


def processes_of(run: Path) -> int:
    """Return the number of processes that trained the newest checkpoint, as stored in it."""
    return load_policy(run).config["trained"]["processes"]


def assert_trained_alike(single_run: Path, parallel_run: Path) -> None:
    """Assert that runs of one and of two processes end equal, up to rounding of their sums."""
    assert (processes_of(single_run), processes_of(parallel_run)) == (1, 2)
    assert [x["step"] for x in logged(parallel_run)] == [x["step"] for x in logged(single_run)]
    assert losses(parallel_run) == pytest.approx(losses(single_run), rel=1e-5)
    weights = [dict(load_policy(run).named_parameters()) for run in (single_run, parallel_run)]
    for name, weight in weights[0].items():
        # Softmax ignores the bias of keys: its gradient is rounding noise, which Adam amplifies.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), S2], ids=["flow", "s2"])
def test_two_processes_train_as_one(overrides, tiny, tiny_arguments):
    all_overrides = ("train.steps=20", "train.checkpoint_every=10", *overrides)
    train_in_two(tiny_arguments("two", *all_overrides))
    assert_trained_alike(train(tiny("one", *all_overrides)), Path(tiny("two")["run_dir"]))


@pytest.mark.slow
def test_two_processes_share_the_time_plan_and_one_evaluates(tiny, tiny_arguments):
    overrides = ["train.steps=null", "train.minutes=0.05", "train.warmup_steps=5"]
    overrides += ["train.checkpoint_every=5", "evaluation.episodes=1", "evaluation.videos=0"]
    output = train_in_two(tiny_arguments("two", *overrides))
    run = Path(tiny("two")["run_dir"])
    folder = newest_checkpoint(run)
    assert folder is not None and processes_of(run) == 2
    progress = load_trainer_state(folder)["progress"]
    assert progress["step"] == progress["total_steps"] > 5
    assert output.count("report: ") == 1 and (run / "evaluation" / "report.html").is_file()


@pytest.mark.slow
def test_killed_process_ends_the_other_and_the_run_resumes(tiny, tiny_arguments):
    overrides = ("train.steps=100", "train.checkpoint_every=3")
    run = Path(tiny("two")["run_dir"])
    launcher = start(TWO, tiny_arguments("two", *overrides))
    while _log_length(run) < 7:
        assert launcher.poll() is None
        time.sleep(0.01)
    for process in psutil.Process(launcher.pid).children():
        if process.environ().get("RANK") == "1":
            process.kill()
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    cause = errors.partition("Root Cause")[2]
    assert re.search(r"rank +: 1 .*\n.*SIGKILL", cause)
    assert load_policy(run).config["trained"]["steps"] < 100
    train_in_two(tiny_arguments("two", *overrides, "resume=true"))
    assert_trained_alike(train(tiny("one", *overrides)), run)


@pytest.mark.slow
def test_accelerate_that_starts_one_of_two_processes_is_refused(tiny, tiny_arguments):
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    process = start(launcher, tiny_arguments("run"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0 and "torchrun --standalone" in errors
    assert not Path(tiny("run")["run_dir"]).exists()


def test_requested_single_process_trains(monkeypatch):
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerator = join_processes(torch.device("cpu"), "no")
    assert accelerator.num_processes == 1 and devices(accelerator) == "cpu"


def test_fewer_processes_than_requested_are_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match=r"^`accelerate launch` was asked for several processes"):
        join_processes(torch.device("cpu"), "no")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes need 2 GPUs, but PyTorch sees 1"):
        join_processes(torch.device("cuda"), "no")


def test_batch_must_be_divisible_by_the_processes(tiny):
    config = TrainConfig(**tiny("run", "train.batch_size=15")["train"])
    accelerator: Any = SimpleNamespace(num_processes=2)
    model: Any = None
    data: Any = range(100)
    with pytest.raises(ConfigError, match="batch_size=15 must be a multiple of the 2 processes"):
        Trainer(model, data, config, Path("run"), seed=0, accelerator=accelerator)


def _train_quietly(config: dict[str, Any]) -> None:
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 1)
        train(config)


@pytest.mark.slow
def test_killed_ten_times_equals_uninterrupted(tiny):
    overrides = (*S2, "train.steps=400", "train.checkpoint_every=3")
    uninterrupted = train(tiny("uninterrupted", *overrides))
    config = tiny("killed", *overrides, "resume=true")
    run = Path(config["run_dir"])
    # The fork server imports the package once; each training has its own process.
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
    print(f"{saving} of {kills} kills occurred while a checkpoint was written")
    assert [x["step"] for x in logged(run)] == list(range(1, 401))
    assert_same_end(uninterrupted, run)


def _log_length(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0
