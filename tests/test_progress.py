"""Progress lines without a terminal, timed training steps, and training budgets."""

from __future__ import annotations

import time

import pytest
import torch
from conftest import compose_config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn

from ebt_policy.io import progress as progress_module
from ebt_policy.io.progress import ReportedProgress
from ebt_policy.training.log_window import LogWindow
from ebt_policy.training.overrides import choose_budget


def make_progress(file) -> ReportedProgress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return ReportedProgress(*columns, console=Console(file=file, width=40))


def test_lines_appear_without_a_terminal_during_a_long_step(tmp_path, monkeypatch):
    monkeypatch.setattr(progress_module, "LINE_INTERVAL_S", 0.05)
    with (tmp_path / "out").open("w+") as file:
        with make_progress(file) as bar:
            task = bar.add_task("compiling", total=3)
            time.sleep(0.3)  # without any update
            file.seek(0)
            assert file.read() == "compiling  0/3\n"  # an equal line is not repeated
            bar.update(task, completed=2, description="training")
        file.seek(0)
        assert file.read().splitlines() == ["compiling  0/3", "training  2/3"]


def test_a_disabled_progress_prints_nothing(tmp_path):
    with (tmp_path / "out").open("w+") as file:
        with ReportedProgress(console=Console(file=file), disable=True) as bar:
            bar.add_task("training", total=3)
        file.seek(0)
        assert file.read() == ""


def test_compilation_is_not_counted_as_time_or_steps():
    window = LogWindow(0, torch.device("cpu"), check_gradients=True)
    metrics = {"loss": torch.tensor(1.0), "grad_norm_weights": torch.tensor(1.0)}
    time.sleep(0.05)  # compiling
    window.add(1, metrics)
    window.restart_clock(1)
    window.add(2, {**metrics, "loss": torch.tensor(3.0)})
    assert window.timed_steps(2) == 1 and window.seconds < 0.05
    assert window.mean_loss(2) == 2.0 and window.bad_step == 0
    window.add(3, {**metrics, "grad_norm_weights": torch.tensor(torch.inf)})
    window.add(4, {**metrics, "loss": torch.tensor(torch.nan)})
    assert window.bad_step == 3


@pytest.mark.parametrize(
    ("overrides", "steps", "minutes"),
    [
        ((), None, 13),
        (("train.steps=20",), 20, None),
        (("train.minutes=2",), None, 2),
        (("+train.steps=20", "train.minutes=null"), 20, None),
        (("train.steps=null",), None, 13),
        (("train.steps=20", "train.minutes=2"), 20, 2),  # refused by TrainConfig
    ],
)
def test_one_budget_unsets_the_other(overrides, steps, minutes):
    default = {"steps": None, "minutes": 13}
    for override in overrides:
        name, _, value = override.lstrip("+").removeprefix("train.").partition("=")
        default[name] = None if value == "null" else int(value)
    chosen = choose_budget(default, overrides)
    assert (chosen["steps"], chosen["minutes"]) == (steps, minutes)


def test_the_packaged_configuration_has_one_budget():
    train = compose_config("task=push_t", "train.steps=null", "train.minutes=13")["train"]
    assert (train["steps"], train["minutes"]) == (None, 13)
