"""The number of steps that a budget of minutes allows, and the learning rate."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import pytest
from training_runs import logged

from ebt_policy.policies import load_policy
from ebt_policy.train import train
from ebt_policy.training.checkpoint import load_trainer_state, newest_checkpoint
from ebt_policy.training.schedule import learning_rate_factor, plan_total_steps

pytestmark = pytest.mark.slow


def test_steps_are_planned_from_the_minutes_after_the_warm_up(make_trainer):
    trainer = make_trainer("train.steps=null", "train.minutes=2", "train.warmup_steps=30")
    trainer.progress.step, trainer.progress.seconds = 29, 10.0
    plan_total_steps(trainer.progress, trainer.config, rate=5.0)
    assert trainer.progress.total_steps is None
    trainer.progress.step, trainer.progress.seconds = 30, 20.0
    plan_total_steps(trainer.progress, trainer.config, rate=5.0)
    assert trainer.progress.total_steps == 30 + 5 * (120 - 20)
    trainer.progress.step, trainer.progress.seconds = 230, 40.0  # now twice as fast
    plan_total_steps(trainer.progress, trainer.config, rate=1.0)
    assert trainer.progress.total_steps == 230 + 10 * (120 - 40)
    trainer.progress.step, trainer.progress.seconds = 400, 61.0  # half of the budget is used
    plan_total_steps(trainer.progress, trainer.config, rate=1.0)
    assert trainer.progress.total_steps == 1030


def test_exceeded_time_budget_ends_the_training(make_trainer):
    trainer = make_trainer("train.steps=null", "train.minutes=1")
    trainer.progress.step, trainer.progress.seconds = 40, 100.0
    plan_total_steps(trainer.progress, trainer.config, rate=5.0)
    assert trainer.progress.total_steps == 41
    trainer.progress.step, trainer.progress.seconds = 41, 101.0
    plan_total_steps(trainer.progress, trainer.config, rate=5.0)
    assert trainer.progress.total_steps == 41


def test_plan_is_corrected_after_compilation(make_trainer):
    trainer = make_trainer("train.steps=null", "train.minutes=10", "train.log_every=50")
    trainer.progress.step, trainer.progress.seconds = 50, 300.0  # mostly compilation
    plan_total_steps(trainer.progress, trainer.config, rate=50 / 300)
    assert trainer.progress.total_steps == 50 + 50
    trainer.progress.step, trainer.progress.seconds = 100, 310.0
    plan_total_steps(trainer.progress, trainer.config, rate=5.0)
    assert trainer.progress.total_steps == 100 + 5 * 290
    trainer.progress.step, trainer.progress.seconds = 150, 330.0
    plan_total_steps(trainer.progress, trainer.config, rate=2.5)
    assert trainer.progress.total_steps == 100 + 5 * 290


def test_long_warm_up_is_limited_by_the_budget(make_trainer):
    trainer = make_trainer("train.steps=null", "train.minutes=1", "train.warmup_steps=10_000")
    trainer.progress.step, trainer.progress.seconds = 10, 5.0
    plan_total_steps(trainer.progress, trainer.config, rate=2.0)
    assert trainer.progress.total_steps is None
    trainer.progress.step, trainer.progress.seconds = 20, 10.0
    plan_total_steps(trainer.progress, trainer.config, rate=2.0)
    assert trainer.progress.total_steps == 20 + 2 * 50


def test_minutes_budget_is_met(tiny):
    start = time.perf_counter()
    run = train(tiny("run", "train.steps=null", "train.minutes=0.03", "train.log_every=5"))
    assert time.perf_counter() - start < 10
    folder = newest_checkpoint(run)
    assert folder is not None
    progress = load_trainer_state(folder)["progress"]
    assert progress["step"] == progress["total_steps"] > 5
    assert 0.4 < progress["seconds"] < 6
    rates = [x["lr"] for x in logged(run)]
    assert rates[-1] < 0.5 * max(rates)


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    factors = [learning_rate_factor(step, 100, 20) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 20) and factors[19] == factors[20] == 1.0
    assert all(a < b for a, b in pairwise(factors[:20]))
    assert all(a > b for a, b in pairwise(factors[20:]))
    assert factors[60] == pytest.approx(0.55) and factors[99] == pytest.approx(0.1, abs=1e-3)
    assert learning_rate_factor(500, None, 20) == 1.0  # not planned yet: the peak value


def test_every_update_has_the_learning_rate_of_its_step(tiny):
    lines = logged(train(tiny("run", "train.warmup_steps=4", "train.lr=0.008")))
    falling = [0.1 + 0.45 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert [x["lr"] / 0.008 for x in lines] == pytest.approx([0.25, 0.5, 0.75, 1.0, *falling])


def test_learned_step_size_has_its_own_learning_rate(tiny):
    run = train(tiny("run", "objective=s1", "objective.step_size=7.0", "train.lr=0.001"))
    folder = newest_checkpoint(run)
    assert folder is not None
    groups = load_trainer_state(folder)["optimizer"]["param_groups"]
    assert len(groups) == 3 and len(groups[2]["params"]) == 1
    assert groups[2]["lr"] == pytest.approx(21 * groups[0]["lr"])
    assert groups[2]["weight_decay"] == groups[1]["weight_decay"] == 0 < groups[0]["weight_decay"]
    indices = [i for group in groups for i in group["params"]]
    assert sorted(indices) == list(range(len(list(load_policy(run).parameters()))))
