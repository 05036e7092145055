"""The folder of a training run: locking, signals, full disks and non-finite weights."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import assert_one_line_error
from diffusers.training_utils import EMAModel
from training_runs import assert_same_end

from ebt_policy.io.output import output_folder
from ebt_policy.train import main, train
from ebt_policy.training.trainer import Trainer


@pytest.fixture
def run_main(call_entry):
    """Return a function that runs the entry and returns its exit code and stderr."""
    return lambda arguments: call_entry(main, *arguments)


def signal_in_step(monkeypatch, step: int, number: int) -> None:
    """Send a signal to the training in the middle of a step."""
    train_step = Trainer.train_step

    def interrupted(trainer: Trainer):
        if trainer.progress.step == step - 1:
            signal.raise_signal(number)
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", interrupted)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_training_is_saved_and_resumes(
    number, exit_code, run_main, tiny, tiny_arguments, tmp_path, monkeypatch
):
    uninterrupted = train(tiny("uninterrupted"))
    with monkeypatch.context() as context:
        signal_in_step(context, 7, number)
        code, error = run_main(tiny_arguments("run"))
    run, before = tmp_path / "run", signal.getsignal(number)
    assert code == exit_code
    assert f"interrupted: saved step 7 in {run}/checkpoints/step_00000007" in error
    assert "run the same command with resume=true" in error and "Traceback" not in error
    assert sorted(os.listdir(run)) == ["checkpoints", "config.yaml", "log.jsonl"]
    assert run_main(tiny_arguments("run", "resume=true"))[0] == 0
    assert_same_end(uninterrupted, run)
    assert signal.getsignal(number) == before


@pytest.fixture
def interruptible():
    """Python's handler of SIGINT, which a process in a shell's background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_second_signal_ends_the_training_at_once(run_main, tiny_arguments, tmp_path, monkeypatch):
    def twice(trainer: Trainer):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)  # handled here before it returns

    monkeypatch.setattr(Trainer, "train_step", twice)
    code, error = run_main(tiny_arguments("run"))
    assert code == 130 and "interrupted" in error and "saved" not in error


def test_terminated_entry_releases_its_folder(run_main, tiny_arguments, tmp_path, monkeypatch):
    """Before training, a signal ends the entry at once and leaves no empty folder."""
    monkeypatch.setattr(
        "ebt_policy.policies.task_config.PolicyTaskConfig.demonstrations",
        lambda _: signal.raise_signal(signal.SIGTERM),
    )
    code, error = run_main(tiny_arguments("run"))
    assert (code, error) == (143, "interrupted\n")
    assert not (tmp_path / "run").exists()


def test_run_folder_is_locked_by_one_training(run_main, tiny_arguments, tmp_path):
    with output_folder(tmp_path / "run", "run_dir"):
        code, error = run_main(tiny_arguments("run"))
        assert code == 2 and f"run is in use by process {os.getpid()} on" in error
    assert not (tmp_path / "run").exists()


def test_missing_disk_space_is_reported_before_training(
    run_main, tiny_arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr("ebt_policy.training.run_folder.CHECKPOINT_BYTES_PER_PARAMETER", 1 << 40)
    code, error = run_main(tiny_arguments("run"))
    assert code == 2 and "MiB of free disk space" in error
    assert not (tmp_path / "run").exists()


def test_full_disk_keeps_the_last_checkpoint(run_main, tiny, tiny_arguments, tmp_path, monkeypatch):
    uninterrupted, save = train(tiny("uninterrupted", "train.checkpoint_every=4")), torch.save

    def full(state, file):
        if state["progress"]["step"] == 8:
            Path(file).write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")
        save(state, file)

    with monkeypatch.context() as context:
        context.setattr(torch, "save", full)
        code, error = run_main(tiny_arguments("run", "train.checkpoint_every=4"))
    run = tmp_path / "run"
    assert code == 2 and "the checkpoint of step 8 cannot be written into" in error
    assert os.listdir(run / "checkpoints") == ["step_00000004"]
    assert run_main(tiny_arguments("run", "train.checkpoint_every=4", "resume=true"))[0] == 0
    assert_same_end(uninterrupted, run)


def test_weights_that_are_not_finite_are_never_saved(
    run_main, tiny_arguments, tmp_path, monkeypatch
):
    step = EMAModel.step

    def spoilt(average: EMAModel, parameters) -> None:
        step(average, parameters)
        average.shadow_params[0].fill_(math.nan)

    monkeypatch.setattr(EMAModel, "step", spoilt)
    code, error = run_main(tiny_arguments("run"))
    assert code == 2 and "the weights are not finite in step 10" in error
    assert not list((tmp_path / "run").glob("checkpoints/step_*"))


def test_run_with_invalid_yaml_is_a_one_line_error(run_main, tiny_arguments, tmp_path):
    assert run_main(tiny_arguments("run"))[0] == 0
    (tmp_path / "run" / "config.yaml").write_text("task: ${foo")
    code, error = run_main(tiny_arguments("run", "resume=true"))
    assert code == 2 and "config.yaml cannot be read" in error
    assert_one_line_error(error)
