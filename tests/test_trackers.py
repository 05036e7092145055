"""Experiment trackers with their real packages, offline."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebt_policy.errors import ConfigError
from ebt_policy.training import trackers
from ebt_policy.training.trackers import check_tracker

# Trackers start threads and services, so each run has its own process. The second of two runs
# resumes the first one after its second step.
RUNS = """
import sys
from pathlib import Path
from accelerate import PartialState
from ebt_policy.training.log import MetricLog

PartialState()
name, folder, *resume_steps = sys.argv[1:]
config = {"task": {"name": "push_t", "path": ["a", "b"], "episodes": None}, "seed": 3}
for resume_step in [None, *map(int, resume_steps)]:
    log = MetricLog(Path(folder), tracker=name, config=config, resume_step=resume_step)
    for step in range((resume_step or 0) + 1, 5):
        log.write(step=step, loss=1 / step + (resume_step or 0))
    log.close()
"""


def track(name: str, folder: Path, *resume_steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1",
        "TRACKIO_DIR": str(folder.parent / "trackio"),
    }  # fmt: skip
    command = [sys.executable, "-c", RUNS, name, str(folder), *map(str, resume_steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((folder / "log.jsonl").read_text().splitlines()) == 4


def needs_package(name):
    """Return a decorator of tests that need the package of a tracker."""
    skip = pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")
    return lambda function: pytest.mark.trackers(skip(function))


@needs_package("tensorboard")
def test_tensorboard_has_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path / "run", 2)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {e.step: pytest.approx(e.value) for e in events.Scalars("loss")} == {
        1: 1.0, 2: 1 / 2, 3: 2 + 1 / 3, 4: 2 + 1 / 4,
    }  # fmt: skip
    assert len(events.Scalars("loss")) == 4
    (options,) = (tmp_path / "run" / "tensorboard").glob("*/hparams.yml")
    assert "task.name: push_t" in options.read_text() and "seed: 3" in options.read_text()


@needs_package("wandb")
def test_wandb_resumes_the_run_of_the_folder(tmp_path):
    track("wandb", tmp_path / "run", 2)
    track("wandb", tmp_path / "other")
    ids = [
        file.stem.removeprefix("run-")
        for run in ("run", "other")
        for file in sorted((tmp_path / run / "wandb").glob("offline-run-*/run-*.wandb"))
    ]
    assert len(ids) == 3 and ids[0] == ids[1] != ids[2]
    assert ids[0] == (tmp_path / "run" / "tracker_id").read_text()


@needs_package("trackio")
def test_trackio_resumes_the_run_of_the_folder(tmp_path):
    def ask(*arguments):
        command = [sys.executable, "-m", "trackio.cli", *arguments, "--project", "ebt_policy"]
        environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
        done = subprocess.run(
            [*command, "--json"], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    track("trackio", tmp_path / "run", 2)
    name = f"run-{(tmp_path / 'run' / 'tracker_id').read_text()}"
    run = ask("get", "run", "--run", name)
    assert run["config"]["task"]["name"] == "push_t" and run["config"]["seed"] == 3
    values = ask("get", "metric", "--run", name, "--metric", "loss")["values"]
    assert [value["step"] for value in values] == [1, 2, 3, 4, 3, 4]


def test_new_runs_of_one_folder_have_new_ids(tmp_path):
    first = trackers._run_id(tmp_path, is_new=True)
    assert trackers._run_id(tmp_path, is_new=False) == first
    assert trackers._run_id(tmp_path, is_new=True) != first


def test_unknown_or_missing_trackers_are_errors(monkeypatch):
    with pytest.raises(ConfigError, match=r"one of off, tensorboard, wandb, trackio, got on\.$"):
        check_tracker("on")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    check_tracker("off")
    with pytest.raises(ConfigError, match=r"tracker=wandb needs the package wandb: pip install"):
        check_tracker("wandb")


def test_a_tracker_that_does_not_start_is_an_error(monkeypatch, tmp_path):
    class Broken:
        def __init__(self, *_, **__):
            raise RuntimeError("you are not logged in")

    monkeypatch.setattr("accelerate.tracking.WandBTracker", Broken)
    with pytest.raises(ConfigError, match=r"does not work \(you are not logged in\); or use"):
        trackers.start_tracker("wandb", tmp_path, {}, None)
