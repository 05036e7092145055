"""The trainer: faults, options, batches, the held-out loss, logs and precision."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from training_runs import S2, logged, losses

from ebt_policy.errors import ConfigError
from ebt_policy.policies import load_policy
from ebt_policy.train import train
from ebt_policy.training.batches import process_slice
from ebt_policy.training.checkpoint import newest_checkpoint
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.progress import TrainingProgress
from ebt_policy.training.schedule import Progress
from ebt_policy.training.trainer import VALIDATION_ROWS, NonFiniteLoss, Trainer

pytestmark = pytest.mark.slow


def poison(monkeypatch: pytest.MonkeyPatch, step: int, metric: str) -> None:
    """Make a metric NaN at a step (counted from 1), as a diverged loss or gradient would be."""
    original = Trainer.train_step

    def train_step(self: Trainer) -> dict[str, Tensor]:
        metrics = original(self)
        if self.progress.step == step:
            metrics[metric] = torch.tensor(math.nan)
        return metrics

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("metric", ["loss", "grad_norm_weights"])
@pytest.mark.parametrize("log_every", [1, 50])
def test_nan_names_the_step_and_the_last_good_checkpoint(metric, log_every, tiny, monkeypatch):
    poison(monkeypatch, 8, metric)
    config = tiny("run", "train.checkpoint_every=4", f"train.log_every={log_every}")
    with pytest.raises(NonFiniteLoss, match=r"step 8 \(") as caught:
        train(config)
    good = Path(config["run_dir"]) / "checkpoints" / "step_00000004"
    assert str(good) in str(caught.value)
    assert newest_checkpoint(Path(config["run_dir"])) == good
    load_policy(good)


def test_nan_before_the_first_checkpoint_is_reported(tiny, monkeypatch):
    poison(monkeypatch, 2, "loss")
    with pytest.raises(NonFiniteLoss, match="none yet"):
        train(tiny("run"))


@pytest.mark.parametrize("overrides", [(), S2, ("model=bc",)], ids=["flow", "s2", "bc"])
def test_diverging_learning_rate_is_reported(overrides, tiny):
    config = tiny("run", "train.lr=1e30", "train.checkpoint_every=1", *overrides)
    with pytest.raises(NonFiniteLoss, match=r"not finite .*step .*last good checkpoint: "):
        train(config)
    newest = newest_checkpoint(Path(config["run_dir"]))
    if newest is not None:  # stored checkpoints are finite
        assert all(p.isfinite().all() for p in load_policy(newest).parameters())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=0", "at least 1"),
        ("train.minutes=5", "exactly one"),
        ("train.steps=null", "exactly one"),
        ("train.batch_size=0", "positive"),
        ("train.batch_size=many", "batch_size must be an integer, got 'many'"),
        ("train.batch_size=100000", "fewer than train.batch_size"),
        ("train.lr=-1", "positive"),
        ("train.lr=fast", "lr must be a number"),
        ("train.compile=3", "compile must be true or false"),
        ("train.mixed_precision=int8", "no, bf16 or fp16"),
        ("+train.wings=2", "no option wings"),
        ("task.validation_episodes=6", "must leave some of the 6"),
        ("task.horizon=8", "too short to execute"),
        ("task.demos=robot", "unknown"),
    ],
)
def test_invalid_options_are_refused_before_training(override, message, tiny):
    with pytest.raises(ValueError, match=message) as caught:
        train(tiny("run", override))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["batch_size", "lr", "warmup_steps", "max_grad_norm",
                                  "ema_power", "checkpoint_every", "log_every"])  # fmt: skip
def test_zero_is_refused_for_positive_options(name, tiny):
    section = tiny("run")["train"]
    with pytest.raises(ConfigError, match=f"^train.{name} must be positive, got 0.$"):
        TrainConfig(**{**section, name: 0})


def test_zero_minutes_are_refused(tiny):
    section = {**tiny("run")["train"], "steps": None, "minutes": 0}
    with pytest.raises(ConfigError, match=r"^train\.minutes must be positive, got 0\.$"):
        TrainConfig(**section)


def test_missing_compiler_is_logged_and_training_is_eager(tiny, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler found\nmore lines")

    monkeypatch.setattr(torch, "compile", broken)
    assert len(losses(train(tiny("run", "train.compile=true")))) == 10
    assert "torch.compile does not work here (no C++ compiler found)" in caplog.text


def test_log_line_has_metrics_and_the_speed_since_the_last_line(tiny):
    lines = logged(train(tiny("run", "train.log_every=5", "train.checkpoint_every=100")))
    first, last = lines
    assert first.keys() == {
        "step", "loss", "grad_norm", "grad_norm_weights", "lr", "steps_per_second", "seconds",
    }  # fmt: skip
    assert last.keys() == first.keys() | {"validation_loss"}
    assert last["seconds"] - first["seconds"] == pytest.approx(5 / last["steps_per_second"])
    assert first["seconds"] == pytest.approx(5 / first["steps_per_second"], rel=1e-5)


def test_batches_sample_without_replacement(make_trainer, monkeypatch):
    trainer = make_trainer("train.batch_size=7")
    monkeypatch.setattr(trainer.sampler.data, "gather", lambda index: {"index": index})
    monkeypatch.setattr(trainer.model, "normalize", lambda batch: batch)
    count = len(trainer.sampler.data)
    per_epoch = count // 7
    epochs = [
        torch.cat([trainer.batch(epoch * per_epoch + i)["index"] for i in range(per_epoch)])
        for epoch in range(2)
    ]
    for rows in epochs:
        assert len(rows.unique()) == len(rows) == 7 * per_epoch
        assert rows.min() >= 0 and rows.max() < count
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(trainer.batch(3)["index"], trainer.batch(3)["index"])
    trainer.sampler.seed = 1
    assert not torch.equal(trainer.batch(0)["index"], epochs[0][:7])


class HeldOut:
    """Held-out data: `count` windows that repeat a trainer's data."""

    def __init__(self, trainer: Trainer, count: int) -> None:
        self.data, self.count = trainer.sampler.data, count
        self.requested: list[int] = []

    def __len__(self) -> int:
        return self.count

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        self.requested += index.tolist()
        return self.data.gather(index % len(self.data))


def test_held_out_loss_uses_evenly_spread_windows_and_fixed_noise(make_trainer):
    trainer = make_trainer("train.batch_size=64")
    large, small = HeldOut(trainer, 5000), HeldOut(trainer, 100)
    first = trainer._validation_loss(large)
    assert large.requested[0] == 0 and large.requested[VALIDATION_ROWS - 1] == 4999
    steps = {b - a for a, b in pairwise(large.requested)}
    assert len(large.requested) == VALIDATION_ROWS and steps == {4, 5}
    assert trainer._validation_loss(large) == first and math.isfinite(first["validation_loss"])
    trainer.seed += 1
    assert trainer._validation_loss(large) != first
    # Batches have the training batch size, so the last one is filled with the first windows.
    trainer._validation_loss(small)
    assert small.requested == [*range(100), *range(28)]


def test_held_out_loss_is_the_mean_over_batches(make_trainer, monkeypatch):
    trainer, batch_losses = make_trainer("train.batch_size=8"), iter([1.0, 2.0, 6.0])
    monkeypatch.setattr(
        trainer.model, "forward", lambda batch: (torch.tensor(next(batch_losses)), {})
    )
    assert trainer._validation_loss(HeldOut(trainer, 20)) == {"validation_loss": 3.0}


@pytest.mark.parametrize("failure", [FloatingPointError, None], ids=["raises", "nan"])
def test_non_finite_held_out_loss_is_not_logged(failure, make_trainer, monkeypatch):
    trainer = make_trainer()

    def broken(batch):
        if failure is not None:
            raise failure
        return torch.tensor(math.nan), {}

    monkeypatch.setattr(trainer.model, "forward", broken)
    assert trainer._validation_loss(HeldOut(trainer, 20)) == {}


def test_progress_line_shows_the_training_state(capsys):
    counter = Progress(step=3)
    with TrainingProgress(counter, enabled=True) as line:
        counter.step, counter.total_steps = 5, 20
        line.update(0.12345, 67.89)
    output = capsys.readouterr().out
    assert "training  5/20  loss 0.1235  67.9 steps/s" in output and "left 0:00:00" in output
    with TrainingProgress(counter, enabled=False) as line:
        line.update(0.12345, 67.89)
    assert capsys.readouterr().out.strip() == ""


@pytest.mark.parametrize(
    "overrides", [(), ("objective=contrastive",), S2], ids=["flow", "contrastive", "s2"]
)
def test_bf16_trains_on_the_cpu(overrides, tiny, monkeypatch):
    exact = losses(train(tiny("exact", *overrides, "train.steps=4")))
    AcceleratorState._reset_state(reset_partial_state=True)
    run = train(tiny("bf16", *overrides, "train.steps=4", "train.mixed_precision=bf16"))
    rough = losses(run)
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact
    assert all(p.dtype == torch.float32 for p in load_policy(run).parameters())


def test_training_reduces_the_loss(tiny):
    run = train(tiny("run", "model=bc", "task.relative_to=null", "train.steps=60", "train.lr=0.01"))
    history = losses(run)
    assert sum(history[-10:]) < 0.5 * sum(history[:10])


def test_seed_determines_the_training(tiny):
    first, again = train(tiny("first")), train(tiny("again"))
    other = train(tiny("other", "seed=1"))
    assert losses(first) == losses(again) != losses(other)


def test_rollouts_are_logged_without_side_effects(tiny, monkeypatch):
    import ebt_policy.policies.task as entry

    def rollout(policy, spec, seeds, workers):
        assert spec.max_steps == 20 and not policy.training and max(seeds) < 100_000
        generator = torch.Generator().manual_seed(0)
        policy.predict_chunk({"obs": torch.ones(2, 2, 20)}, generator=generator)
        return [_Result(0.25, seed % 2 == 0) for seed in seeds]

    monkeypatch.setattr(entry, "rollout", rollout)
    plain = train(tiny("plain", "train.checkpoint_every=4"))
    evaluated = train(tiny("played", "train.checkpoint_every=4", "train.eval_every=4"))
    rows = [x for x in logged(evaluated) if "rollout_score" in x]
    assert [x["step"] for x in rows] == [4, 8]
    assert all(x["rollout_score"] == 0.25 and x["rollout_success"] == 0.5 for x in rows)
    assert [x["loss"] for x in logged(evaluated) if "loss" in x] == losses(plain)


def test_failed_rollout_does_not_end_the_training(tiny, monkeypatch):
    import ebt_policy.policies.task as entry

    def rollout(*_, **__):
        raise FloatingPointError("too steep")

    monkeypatch.setattr(entry, "rollout", rollout)
    run = train(tiny("run", "train.eval_every=4"))
    assert len(losses(run)) == 10


class _Result:
    def __init__(self, score: float, success: bool) -> None:
        self.score, self.success = score, success


def test_batch_slices_have_equal_size_with_replay():
    batch = {"obs": torch.arange(9), "noise": {"normal": torch.arange(9), "steps": 3}}
    parts = [process_slice(batch, i, 2) for i in range(2)]
    assert [p["obs"].tolist() for p in parts] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert all(torch.equal(p["noise"]["normal"], p["obs"]) for p in parts)
    assert all(p["noise"]["steps"] == 3 for p in parts)
    assert process_slice(batch, 0, 1) is batch
