"""Metric logs: log.jsonl and Weights & Biases, with a test double of its package."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ebt_policy.errors import ConfigError
from ebt_policy.training.log import MetricLog, check_mode


@pytest.fixture
def wandb(monkeypatch):
    """Install a test double of wandb that records its input, or raises if `fails` is true."""
    module: Any = ModuleType("wandb")
    module.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
    module.begun, module.logged, module.finished, module.fails = [], [], 0, False

    class Run:
        def log(self, values, step):
            module.logged.append((step, values))

        def finish(self):
            module.finished += 1

    def init(**settings):
        if module.fails:
            raise module.errors.Error("you are not logged in")
        module.begun.append(settings)
        return Run()

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def start(run_dir, resume_step=None, mode="offline"):
    run_dir.mkdir(parents=True, exist_ok=True)
    return MetricLog(run_dir, wandb=mode, config={"seed": 0}, resume_step=resume_step)


def test_log_lines_go_to_file_and_wandb(wandb, tmp_path):
    log = start(tmp_path / "run")
    log.write(step=3, loss=0.5)
    log.close()
    assert (tmp_path / "run" / "log.jsonl").read_text() == '{"step": 3, "loss": 0.5}\n'
    assert wandb.logged == [(3, {"step": 3, "loss": 0.5})] and wandb.finished == 1
    (settings,) = wandb.begun
    assert settings["mode"] == "offline" and settings["config"] == {"seed": 0}


def test_only_a_resumed_run_keeps_its_wandb_id(wandb, tmp_path):
    for folder, resume_step in (("a/run", None), ("a/run", 4), ("b/run", None), ("a/run", None)):
        start(tmp_path / folder, resume_step).close()
    first, resumed, other, again = [settings["id"] for settings in wandb.begun]
    assert first == resumed and len({first, other, again}) == 3
    assert all(settings["resume"] == "allow" for settings in wandb.begun)


def test_an_unknown_mode_and_a_missing_package_are_named(monkeypatch):
    check_mode("off")
    with pytest.raises(ConfigError, match=r"^wandb must be one of off, online, offline, got on\.$"):
        check_mode("on")
    monkeypatch.setattr("ebt_policy.training.log.find_spec", lambda name: None)
    check_mode("off")
    with pytest.raises(ConfigError, match=r"^wandb=offline needs the package wandb: pip install"):
        check_mode("offline")


def test_resumed_log_drops_later_and_broken_lines(tmp_path):
    lines = '{"step": 1}\n{"step": 2}\n{"note": 0}\n{"step": 3}\n{"st'
    (tmp_path / "log.jsonl").write_text(lines)
    start(tmp_path, resume_step=2, mode="off").close()
    expected = '{"step": 1}\n{"step": 2}\n{"note": 0}\n'
    assert (tmp_path / "log.jsonl").read_text() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    start(tmp_path, mode="off").close()
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_wandb_errors_are_one_line(wandb, tmp_path):
    wandb.fails = True
    with pytest.raises(ConfigError, match=r"wandb=online does not work \(you are not logged in\)"):
        start(tmp_path / "run", mode="online")
