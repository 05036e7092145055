"""The training command: options, errors, resuming, paths and output files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_one_line_error

from ebt_policy.cli import hydra_arguments
from ebt_policy.policies.metrics import POLICY_KEYS
from ebt_policy.train import main

ROOT = Path(__file__).resolve().parent.parent
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run_main(call_entry):
    """Return a function that runs the entry and returns its exit code and stderr."""
    return lambda arguments: call_entry(main, *arguments)


def test_command_line_trains_a_policy(run_main, tiny_arguments, tmp_path):
    code, error = run_main(tiny_arguments("run"))
    assert (code, error) == (0, "")
    run = tmp_path / "run"
    assert len((run / "log.jsonl").read_text().splitlines()) == 10
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000010"]
    assert not (run / "evaluation").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["device=tpu"], "device must be auto, cpu or cuda, got tpu."),
        (["size.width=1000000000000"], "out of memory ("),
        (["model.name=[1]"], "model=[1] is unknown"),
        (["objective.name=[1]"], "objective=[1] is unknown"),
        (["model=bc", "objective=s2"], "objective=... is for models that descend an energy"),
        (["tracker=bogus"], "tracker must be one of off, tensorboard, wandb, trackio, got bogus."),
        (["wandb=offline"], "wandb was renamed: use tracker=wandb"),
        (["task.path='/nowhere/[at]/all'"], "/nowhere/[at]/all"),
        (["task.demos=robot"], "demos='robot' is unknown"),
        (
            ["task.name=juggling"],
            "task.family=juggling is unknown; there are ",
        ),
        (["train.minutes=5"], "exactly one of train.steps and train.minutes"),
        (["train.lr=0"], "train.lr must be positive"),
        (["size.heads=3"], "multiple of twice heads"),
        (["model.inference.steps=0"], "must be at least 1"),
        (["model.inference.steps=few"], "model.inference.steps must be an integer, got 'few'."),
        (["+model.inference.wings=2"], "model.inference has no option wings"),
        (["+objective.wings=2"], "objective=flow has no option wings"),
        (
            ["objective.noise_samples_per_target=0"],
            "objective.noise_samples_per_target must be at least 1",
        ),
        (["task.env.max_steps=0", "evaluation.episodes=1"], "max_steps must be at least 1"),
        (["evaluation.workers=0"], "workers must be at least 1, got 0."),
        (["evaluation.rollout_episodes=-3"], "rollout_episodes must be at least 0"),
        (["evaluation.rollout_episodes=many"], "rollout_episodes must be an integer, got 'many'."),
        (["+evaluation.wings=2"], "evaluation has no option wings"),
        (["task.relative_to=[18]"], "task.relative_to must name 2 entries of an observation"),
        (["task.relative_to=[18,20]"], "from 0 to 19 or null; got [18, 20]"),
        (["task.relative_to=[-1,18]"], "from 0 to 19 or null; got [-1, 18]"),
        (["+task.env.wings=2"], "task.env has no option wings"),
        (["task.env.max_steps=many"], "task.env.max_steps must be an integer, got 'many'."),
        (["task.horizon=long"], "task.horizon must be an integer or null, got 'long'."),
        (["seed=null"], "seed must be an integer, got None."),
        (
            ["+model.wings=2"],
            "model has no option wings; it has actions_per_token, energy",
        ),
        (["model.actions_per_token=two"], "model.actions_per_token must be an integer, got 'two'."),
        (["model.inference.stop_grad_norm=-1"], "stop_grad_norm must be positive or null"),
        (["model.inference.straightness_tol=0"], "straightness_tol must be positive or null"),
        (
            ["objective=s1", "model.inference.straightness_tol=0.5"],
            "needs a level-conditioned objective (objective=flow)",
        ),
        (
            ["objective.noise_samples_per_target=two"],
            "objective.noise_samples_per_target must be an integer, got 'two'.",
        ),
        (["objective=s2", "objective.noise=0.1"], "noise must be [a number, a number], got 0.1."),
        (
            ["objective=s2", "objective.steps=[2,x]"],
            "must be [an integer, an integer], got [2, 'x'].",
        ),
    ],
)
def test_user_errors_are_one_line(overrides, message, run_main, tiny_arguments, tmp_path):
    code, error = run_main(tiny_arguments("run", *overrides))
    assert code == 2
    assert_one_line_error(error)
    assert message in error
    assert not (tmp_path / "run" / "checkpoints").exists()  # the error comes before any work


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_named(run_main, tiny_arguments):
    code, error = run_main(tiny_arguments("run", "device=cuda"))
    assert code == 2 and "PyTorch sees no GPU; use device=cpu" in error


def test_a_missing_tracker_is_named(run_main, tiny_arguments, monkeypatch):
    monkeypatch.setattr("ebt_policy.training.trackers.find_spec", lambda name: None)
    code, error = run_main(tiny_arguments("run", "tracker=wandb"))
    assert code == 2 and "needs the package wandb: pip install" in error


@pytest.mark.parametrize("override", ["wings=2", "train.wings=2", "model=oracle", "size=xxl"])
def test_unknown_options_and_values_are_named(override, run_main, tiny_arguments):
    code, error = run_main(tiny_arguments("run", override))
    assert code == 2
    assert ("wings" if "wings" in override else override.split("=")[1]) in error
    assert "Traceback" not in error


def test_run_is_never_overwritten_or_changed(run_main, tiny_arguments, tmp_path):
    assert run_main(tiny_arguments("run"))[0] == 0
    run = tmp_path / "run"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}

    code, error = run_main(tiny_arguments("run"))
    assert code == 2 and f"{run} already holds a run: add resume=true" in error
    assert_one_line_error(error)

    for override in ("train.lr=0.5", "seed=3", "size.width=32", "objective=s1", "model=bc"):
        code, error = run_main(tiny_arguments("run", override, "resume=true"))
        changed = override.partition("=")[0].removesuffix(".name")
        assert code == 2 and f"other settings of {changed}" in error, error
        assert_one_line_error(error)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before

    # Options without an effect on the result may change.
    code, error = run_main(tiny_arguments("run", "resume=true", "train.log_every=3"))
    assert (code, error) == (0, "")


def test_damaged_run_is_named(run_main, tiny_arguments, tmp_path):
    assert run_main(tiny_arguments("run", "train.checkpoint_every=5"))[0] == 0
    run = tmp_path / "run"
    state = run / "checkpoints" / "step_00000010" / "trainer_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    code, error = run_main(tiny_arguments("run", "train.checkpoint_every=5", "resume=true"))
    assert code == 2 and str(state) in error and "delete the folder step_00000010" in error
    assert_one_line_error(error)

    shutil.rmtree(state.parent)  # as the message says
    code, error = run_main(tiny_arguments("run", "train.checkpoint_every=5", "resume=true"))
    assert (code, error) == (0, "") and state.exists()

    (run / "config.yaml").write_text("a: [1")
    code, error = run_main(tiny_arguments("run", "train.checkpoint_every=5", "resume=true"))
    assert code == 2 and f"{run}/config.yaml cannot be read" in error
    assert_one_line_error(error)


def test_diverged_training_is_a_one_line_error(run_main, tiny_arguments):
    code, error = run_main(tiny_arguments("run", "train.lr=1e30", "train.checkpoint_every=1"))
    assert code == 2 and "last good checkpoint: " in error
    assert_one_line_error(error)


@pytest.mark.parametrize("name", ["x (1)", "données", "数据", "John's", "a=b", "a,b", "[c]", "$d"])
def test_paths_with_special_characters_are_accepted(
    name, run_main, tiny_arguments, demonstrations, tmp_path
):
    store = tmp_path / f"{name}.zarr"
    shutil.copytree(demonstrations, store)
    arguments = [a for a in tiny_arguments("run") if not a.startswith(("task.path=", "run_dir="))]
    run = tmp_path / f"{name} run"
    code, error = run_main([*arguments, f"task.path={store}", f"run_dir={run}", "train.steps=1"])
    assert (code, error) == (0, "") and (run / "checkpoints").is_dir()


def test_paths_are_quoted_and_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    assert hydra_arguments(["task.path=[a,b]", "output=null", "run_dir=~/runs/1"]) == [
        "task.path=[a,b]", "output=null", "run_dir='/home/user/runs/1'",
    ]  # fmt: skip
    assert hydra_arguments(["task.path='quoted already'", "seed=1"]) == [
        "task.path='quoted already'", "seed=1",
    ]  # fmt: skip
    assert hydra_arguments(["-m", "run_dir=a,b", "task.path=c"]) == [
        "-m", "run_dir=a,b", "task.path='c'",
    ]  # fmt: skip
    assert hydra_arguments(["checkpoint=a b", "x=1", "checkpoint=~/c@d=1"], "checkpoint") == [
        "checkpoint=['a b','/home/user/c@d=1']", "x=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train.lr", "nan"), ("train.lr", "inf"), ("train.max_grad_norm", "nan"),
        ("train.weight_decay", "nan"), ("train.weight_decay", "-5"), ("train.ema_power", "nan"),
        ("train.eval_every", "-4"), ("model.inference.scoring_level", "nan"), ("seed", "-1"),
        ("seed", "5000000000"), ("task.relative_to", "[a,b]"), ("task.validation_episodes", "-1"),
    ],
)  # fmt: skip
def test_invalid_numbers_are_refused(option, value, run_main, tiny_arguments, tmp_path):
    code, error = run_main(tiny_arguments("run", f"{option}={value}"))
    assert code == 2
    assert_one_line_error(error)
    assert option.rpartition(".")[2] in error
    assert not (tmp_path / "run").exists()


def test_nan_minutes_are_refused(run_main, tiny_arguments):
    code, error = run_main(tiny_arguments("run", "train.minutes=nan", "train.steps=null"))
    assert code == 2 and "minutes must be a finite number, got nan" in error


@pytest.mark.slow
def test_training_writes_policy_logs_results_report_and_video(tiny_arguments, tmp_path):
    overrides = ["train.steps=30", "train.checkpoint_every=10", "train.eval_every=20"]
    overrides += ["evaluation.episodes=2", "evaluation.videos=1", "evaluation.rollout_episodes=1"]
    command = [sys.executable, "-m", "ebt_policy.train", *tiny_arguments("run", *overrides)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**QUIET, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["run"]
    run = tmp_path / "run"
    assert sorted(os.listdir(run)) == [
        *("checkpoints", "config.yaml", "evaluation", "log.jsonl", "training.svg")
    ]
    assert sorted(os.listdir(run / "checkpoints")) == ["step_00000020", "step_00000030"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in log if "loss" in x] == list(range(1, 31))
    assert [x["step"] for x in log if "rollout_score" in x] == [20]

    results = run / "evaluation"
    summary = json.loads((results / "summary.json").read_text())
    assert summary["paired"] == [] and len(summary["entries"]) == 1
    entry = summary["entries"][0]
    more = {"name", "episodes", "score", "success", "latency_ms", "steps_used", "command"}
    assert set(entry) == {*POLICY_KEYS, *more, "date", "version", "commit"}
    assert entry["task"] == "push_t" and entry["model"] == "ebt" and entry["objective"] == "flow"
    assert entry["episodes"] == 2 and entry["steps"] == 2 and entry["demos"] == 5
    assert entry["train_steps"] == 30 and entry["train_seed"] == 0 and entry["device"] == "cpu"
    assert 0 <= entry["score"]["mean"] <= 1 and len(entry["score"]["ci95"]) == 2
    assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p99"]
    assert entry["steps_used"]["mean"] == 2 and entry["train_seconds"] > 0
    assert entry["command"].startswith("python -m ebt_policy.train ")

    assert "score" in (results / "table.md").read_text()
    episodes = [json.loads(x) for x in (results / "episodes.jsonl").read_text().splitlines()]
    assert [x["seed"] for x in episodes] == [100_000, 100_001]
    assert all(len(x["chunks"]) == 3 for x in episodes)  # 20 steps, 8 per chunk
    videos = list(results.rglob("*.mp4"))
    assert len(videos) == 1 and videos[0].stat().st_size > 1000
    assert b"ftyp" in videos[0].read_bytes()[:16]
    report = (results / "report.html").read_text()
    assert report.startswith("<!DOCTYPE html>")
    assert "<svg" in report and "data:video/mp4;base64," in report
