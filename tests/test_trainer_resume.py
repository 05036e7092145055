"""Checkpoints of a training and resuming from them: equal to the last bit to one run in one go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_runs import (
    S2,
    Interrupted,
    assert_identical,
    assert_same_end,
    interrupt_at,
    logged,
    losses,
)

from ebt_policy.models.base import CheckpointError
from ebt_policy.policies import load_policy
from ebt_policy.train import train
from ebt_policy.training.checkpoint import load_trainer_state, newest_checkpoint
from ebt_policy.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        S2,
        ("objective=s1",),
        ("model=diffusion",),
        ("train.mixed_precision=bf16",),
    ],
    ids=["flow", "s2", "s1", "diffusion", "bf16"],
)
def test_resumed_equals_uninterrupted_bit_for_bit(overrides, tiny, monkeypatch):
    all_overrides = ("train.steps=10", "train.checkpoint_every=4", *overrides)
    straight = train(tiny("straight", *all_overrides))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted):
            train(tiny("broken", *all_overrides))
    broken = Path(tiny("broken")["run_dir"])
    assert [x["step"] for x in logged(broken)] == list(range(1, 8))
    before = newest_checkpoint(broken)
    assert before is not None and before.name == "step_00000004"
    train(tiny("broken", *all_overrides, "resume=true"))
    assert [x["step"] for x in logged(broken)] == list(range(1, 11))
    assert_same_end(straight, broken)


def test_checkpoint_has_the_weights_and_their_average(tiny):
    run = train(tiny("run", "train.checkpoint_every=5"))
    folder = newest_checkpoint(run)
    assert folder is not None
    state, averaged = load_trainer_state(folder), load_policy(folder).state_dict()
    names = [n for n, _ in load_policy(folder).named_parameters()]
    for name, average in zip(names, state["ema"]["shadow_params"], strict=True):
        assert torch.equal(averaged[name], average)
    assert any(not torch.equal(averaged[name], state["model"][name]) for name in names)


def test_saving_does_not_change_the_training(tiny):
    overrides = ("task.validation_episodes=0",)  # the held-out loss is logged at checkpoints
    rarely = train(tiny("rarely", "train.checkpoint_every=1000", *overrides))
    often = train(tiny("often", "train.checkpoint_every=1", *overrides))
    assert_same_end(rarely, often)


def test_held_out_loss_is_logged_at_checkpoints_without_side_effects(tiny, monkeypatch):
    overrides = ("train.checkpoint_every=4", "train.log_every=5", *S2)
    validated = train(tiny("validated", *overrides))
    lines = logged(validated)
    assert [x["step"] for x in lines if "validation_loss" in x] == [4, 8, 10]
    assert [x["step"] for x in lines if "loss" in x] == [5, 10]
    monkeypatch.setattr(Trainer, "_validation_loss", lambda self, data: {})
    plain = train(tiny("plain", *overrides))
    assert losses(validated) == losses(plain)
    ends = [newest_checkpoint(run) for run in (validated, plain)]
    assert_identical(*(load_trainer_state(folder) for folder in ends if folder is not None))


@pytest.mark.parametrize("already_saved", [False, True], ids=["before", "after"])
def test_kill_before_or_after_a_checkpoint_loses_no_log_line(already_saved, tiny, monkeypatch):
    overrides = ("train.steps=10", "train.checkpoint_every=4")
    straight = train(tiny("straight", *overrides))
    save = Trainer.save

    def killed(self: Trainer) -> Path:
        if self.progress.step < 8:
            return save(self)
        if already_saved:
            save(self)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", killed)
        with pytest.raises(Interrupted):
            train(tiny("broken", *overrides))
    broken = train(tiny("broken", *overrides, "resume=true"))
    assert [x["step"] for x in logged(broken)] == list(range(1, 11))
    assert_same_end(straight, broken)


def test_resume_before_the_first_checkpoint_starts_afresh(tiny, monkeypatch):
    straight = train(tiny("straight"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Interrupted):
            train(tiny("broken"))
    train(tiny("broken", "resume=true"))
    assert_same_end(straight, Path(tiny("broken")["run_dir"]))


def test_resuming_a_finished_run_changes_nothing(tiny):
    run = train(tiny("run"))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "config.yaml"}
    train(tiny("run", "resume=true"))
    assert {p: p.read_bytes() for p in before} == before
    assert {p for p in run.rglob("*") if p.is_file() and p.name != "config.yaml"} == set(before)


def test_mean_loss_is_right_when_a_resume_falls_between_two_log_lines(tiny, monkeypatch):
    overrides = ("train.log_every=4", "train.checkpoint_every=6", "train.lr=1e-9")
    straight = train(tiny("straight", *overrides))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted):
            train(tiny("broken", *overrides))
    broken = train(tiny("broken", *overrides, "resume=true"))
    assert losses(broken)[0] == losses(straight)[0]
    # Its second line averages the two steps after the resume: alike, not half as large.
    assert losses(broken)[1] == pytest.approx(losses(straight)[1], rel=0.4)
    # The last step always has a line, however short the training.
    assert [x["step"] for x in logged(straight) if "loss" in x] == [4, 8, 10]
    assert losses(broken)[2] == losses(straight)[2]


def test_incomplete_trainer_state_is_refused(tiny):
    run = train(tiny("run"))
    folder = newest_checkpoint(run)
    assert folder is not None
    state = load_trainer_state(folder)
    del state["optimizer"]
    torch.save(state, folder / "trainer_state.pt")
    with pytest.raises(CheckpointError, match=r"trainer_state\.pt") as caught:
        train(tiny("run", "resume=true"))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("compiler")
def test_compiled_training_resumes_bit_for_bit(tiny, monkeypatch):
    overrides = ("train.steps=8", "train.checkpoint_every=4", "train.compile=true")
    eager = losses(train(tiny("eager", *overrides, "train.compile=false")))
    straight = train(tiny("straight", *overrides))
    assert losses(straight) == pytest.approx(eager, rel=1e-3)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(Interrupted):
            train(tiny("broken", *overrides))
    train(tiny("broken", *overrides, "resume=true"))
    assert_same_end(straight, Path(tiny("broken")["run_dir"]))
