"""Checkpoints of a training: a resumed run equals an uninterrupted run to the last bit."""

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
    uninterrupted = train(tiny("uninterrupted", *all_overrides))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted):
            train(tiny("resumed", *all_overrides))
    resumed = Path(tiny("resumed")["run_dir"])
    assert [x["step"] for x in logged(resumed)] == list(range(1, 8))
    before = newest_checkpoint(resumed)
    assert before is not None and before.name == "step_00000004"
    train(tiny("resumed", *all_overrides, "resume=true"))
    assert [x["step"] for x in logged(resumed)] == list(range(1, 11))
    assert_same_end(uninterrupted, resumed)


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
    uninterrupted = train(tiny("uninterrupted", *overrides))
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
            train(tiny("resumed", *overrides))
    resumed = train(tiny("resumed", *overrides, "resume=true"))
    assert [x["step"] for x in logged(resumed)] == list(range(1, 11))
    assert_same_end(uninterrupted, resumed)


def test_resume_before_the_first_checkpoint_starts_from_scratch(tiny, monkeypatch):
    uninterrupted = train(tiny("uninterrupted"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Interrupted):
            train(tiny("resumed"))
    train(tiny("resumed", "resume=true"))
    assert_same_end(uninterrupted, Path(tiny("resumed")["run_dir"]))


def test_resuming_a_finished_run_changes_nothing(tiny):
    run = train(tiny("run"))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "config.yaml"}
    train(tiny("run", "resume=true"))
    assert {p: p.read_bytes() for p in before} == before
    assert {p for p in run.rglob("*") if p.is_file() and p.name != "config.yaml"} == set(before)


def test_mean_loss_is_correct_after_a_resume_between_log_lines(tiny, monkeypatch):
    overrides = ("train.log_every=4", "train.checkpoint_every=6", "train.lr=1e-9")
    uninterrupted = train(tiny("uninterrupted", *overrides))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted):
            train(tiny("resumed", *overrides))
    resumed = train(tiny("resumed", *overrides, "resume=true"))
    assert losses(resumed)[0] == losses(uninterrupted)[0]
    # The second line averages the two steps after the resume, so it must not be half as large.
    assert losses(resumed)[1] == pytest.approx(losses(uninterrupted)[1], rel=0.4)
    # The last step is always logged.
    assert [x["step"] for x in logged(uninterrupted) if "loss" in x] == [4, 8, 10]
    assert losses(resumed)[2] == losses(uninterrupted)[2]


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
    uninterrupted = train(tiny("uninterrupted", *overrides))
    assert losses(uninterrupted) == pytest.approx(eager, rel=1e-3)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(Interrupted):
            train(tiny("resumed", *overrides))
    train(tiny("resumed", *overrides, "resume=true"))
    assert_same_end(uninterrupted, Path(tiny("resumed")["run_dir"]))
