"""Suites: evaluation, resuming, aggregation over tasks and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, compose_config
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from training_runs import copy_run, set_stored_option

from ebt_policy.config import options
from ebt_policy.envs import rollout
from ebt_policy.errors import ConfigError
from ebt_policy.eval import main
from ebt_policy.evaluation import figure_style
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies
from ebt_policy.policies.figures import suite_overview
from ebt_policy.policies.suite import Suite, evaluate_suite, interval_note, load_suite
from ebt_policy.train import train

PROTOCOL = EvalConfig(episodes=2, seed=5, videos=0, workers=1)
SUITE = Suite("two", ["push-near", "push-far"])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, demonstrations) -> Path:
    """Return a folder with runs of two policies for each task of `SUITE`, one of two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in {"ebt": (), "bc-seed0": ("model=bc",)}.items():
        config = compose_config(*TINY, "train.steps=2", *overrides)
        config["task"]["path"], config["run_dir"] = str(demonstrations), str(folder / name)
        train(config)
    for steps, task in zip((15, 20), SUITE.tasks, strict=True):
        copy_run(folder / "ebt", folder / task / "ebt", "task.env.max_steps", steps)
        for seed in range(2):
            run = folder / task / f"bc-seed{seed}"
            copy_run(folder / "bc-seed0", run, "task.env.max_steps", steps)
            set_stored_option(run, "seed", seed)
    return folder


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    """Return a copy of the training runs that a test may change."""
    return shutil.copytree(trained, tmp_path / "runs")


def checkpoint_texts(runs: Path) -> list[str]:
    return [f"{runs}/{{task}}/ebt@steps=1,num_candidates=2", f"{runs}/{{task}}/bc-seed*"]


def run_suite(runs: Path, output: Path, suite: Suite = SUITE):
    return evaluate_suite(
        checkpoint_texts(runs), PROTOCOL, suite, output=output, device=CPU, command="test"
    )  # fmt: skip


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "suite.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_finished_suite_is_not_rerun(trained, tmp_path, monkeypatch):
    result = run_suite(trained, tmp_path)
    assert [e["name"] for e in result["entries"]] == ["ebt (steps 1, candidates 2)", "bc"]
    assert [e["runs"] for e in result["entries"]] == [1, 2]
    assert len(lines(tmp_path)) == 2 * (1 + 2)  # tasks times training runs
    for entry in result["entries"]:
        assert list(entry["tasks"]) == SUITE.tasks
        rates = [task["success"]["mean"] for task in entry["tasks"].values()]
        assert entry["mean"]["mean"] == pytest.approx(sum(rates) / 2)
    assert [(p["metric"], p["a"], p["b"]) for p in result["paired"]] == [
        (metric, "ebt (steps 1, candidates 2)", "bc") for metric in ("mean", "iqm")
    ]
    assert json.loads((tmp_path / "suite.json").read_text()) == result
    table = (tmp_path / "suite.md").read_text()
    assert "| push-near |" in table and "95 % intervals, 2 episodes per run" in table
    assert "one training run per task (ebt (steps 1, candidates 2))" in table
    assert (tmp_path / "suite.svg").read_text().startswith("<?xml")
    for task in SUITE.tasks:
        summary = json.loads((tmp_path / task / "summary.json").read_text())
        assert [e["train_seed"] for e in summary["entries"]] == [0, [0, 1]]
        assert summary["paired"] == result["paired_on_tasks"][task] != []
        assert len((tmp_path / task / "episodes.jsonl").read_text().splitlines()) == 2 * 3

    class ForbiddenPool:
        def __init__(self, *_):
            raise AssertionError("played again")

    monkeypatch.setattr(rollout, "RolloutPool", ForbiddenPool)
    assert run_suite(trained, tmp_path) == result


@pytest.mark.slow
def test_interrupted_suite_reruns_one_part_and_new_trainings(runs, tmp_path):
    output = tmp_path / "out"
    result = run_suite(runs, output)
    keys = [line["key"] for line in lines(output)]
    log = output / "suite.jsonl"
    log.write_text(log.read_text()[:-25])
    assert run_suite(runs, output) == result
    assert [line["key"] for line in lines(output)] == keys  # none is incomplete
    set_stored_option(runs / "push-far" / "bc-seed1", "trained.steps", 3)
    run_suite(runs, output)
    assert [line["key"] for line in lines(output)[6:]] == ["bc | bc-seed1 | push-far"]


@pytest.mark.slow
def test_suite_of_one_task_equals_the_plain_evaluation(trained, tmp_path):
    suite = Suite("one", ["push-far"])
    result = run_suite(trained, tmp_path / "suite", suite)
    texts = [text.replace("{task}", "push-far") for text in checkpoint_texts(trained)]
    plain = evaluate_policies(
        texts, PROTOCOL, output=tmp_path / "plain", device=CPU, command="test"
    )
    stored = json.loads((tmp_path / "suite" / "push-far" / "summary.json").read_text())
    assert stored["paired"] == plain["paired"]
    for entry, on_task, expected in zip(
        result["entries"], stored["entries"], plain["entries"], strict=True
    ):
        assert entry["tasks"]["push-far"] == {m: expected[m] for m in ("score", "success")}
        assert entry["mean"]["mean"] == pytest.approx(expected["success"]["mean"])
        varying = {"latency_ms": None, "date": None}
        assert on_task | varying == expected | varying
        assert on_task["latency_ms"] == {"p50": None, "p95": None, "p99": None}


def suite_error(checkpoints: list[str], message: str, suite: Suite = SUITE) -> str:
    with pytest.raises(ConfigError, match=message) as error:
        load_suite(checkpoints, suite, CPU)
    return str(error.value)


def test_all_missing_checkpoints_are_listed_in_one_error(runs):
    shutil.rmtree(runs / "push-near" / "ebt")
    for seed in range(2):
        shutil.rmtree(runs / "push-far" / f"bc-seed{seed}")
    error = suite_error(
        checkpoint_texts(runs), "suite=two lacks .*push-near/ebt@steps=1.*, .*push-far/bc-seed"
    )
    assert "push-far/ebt" not in error and "push-near/bc" not in error


def test_incomparable_entries_are_refused(runs):
    suite_error([f"{runs}/push-near/ebt"], "write {task} where the name of the task belongs")
    suite_error([checkpoint_texts(runs)[0]] * 2, "is listed twice")
    with pytest.raises(ConfigError, match="lists the task lift twice"):
        Suite("x", ["lift", "can", "lift"])
    with pytest.raises(ConfigError, match="suite=x has no tasks"):
        Suite("x", [])
    set_stored_option(runs / "push-near" / "ebt", "task.env.max_steps", 3)
    suite_error(checkpoint_texts(runs), "the checkpoints for push-near differ")
    set_stored_option(runs / "push-near" / "ebt", "task.env.max_steps", 15)
    shutil.rmtree(runs / "push-far" / "bc-seed1")
    suite_error(checkpoint_texts(runs), "there are 2 for push-near, 1 for push-far")


def test_policies_have_equal_names_on_every_task(runs):
    for task in SUITE.tasks:
        shutil.copytree(runs / task / "ebt", runs / f"ebt-{task}")
    text = f"{runs}/ebt-{{task}}@steps=1"
    by_task = load_suite([text, checkpoint_texts(runs)[1]], SUITE, CPU)
    assert [[entry.name for entry in entries] for entries in by_task.values()] == [[text, "bc"]] * 2


@pytest.mark.slow
def test_suite_command_runs_resumes_and_reports_errors(trained, tmp_path, monkeypatch, call_entry):
    monkeypatch.chdir(tmp_path)
    arguments = [f"checkpoint={text}" for text in checkpoint_texts(trained)]
    arguments += ["episodes=1", "workers=1", "videos=0", "device=cpu"]
    suite_options = ["+suite.name=mine", "+suite.tasks=[push-near,push-far]"]
    for _ in range(2):
        assert call_entry(main, *arguments, *suite_options) == (0, "")
    (output,) = Path("results").iterdir()
    assert output.name.startswith("mine-ebt-steps1-candidates2-vs-bc")
    assert len(lines(output)) == 6
    command = json.loads((output / "suite.json").read_text())["command"]
    assert "checkpoint=" in command and "{task}" in command

    for wrong, message in {
        "suite=metaworld_10": "lacks",
        "perturb=kick": "exclude each other",
        "+suite.wings=2": "suite has no option wings; it has name, tasks.",
    }.items():
        options = [] if wrong.startswith("suite") else suite_options
        code, error = call_entry(main, *arguments, *options, wrong)
        assert code == 2 and message in error and error.count("\n") == 1
    code, error = call_entry(main, *arguments, "suite=nowhere")
    assert code == 2 and "metaworld_10" in error


def test_shipped_suites_can_be_loaded():
    from importlib.resources import files

    names = [
        file.name.removesuffix(".yaml")
        for file in (files("ebt_policy.configs") / "suite").iterdir()
    ]
    assert {"metaworld_10", "mujoco"} <= set(names)
    for name in names:
        with initialize_config_module("ebt_policy.configs", version_base="1.3"):
            section = OmegaConf.to_container(compose("eval", [f"suite={name}"]).suite)
        assert options(Suite, section, "suite").name == name  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 10])
def test_suite_figure_has_a_row_per_policy_and_a_column_per_task(count):
    value = {"mean": 0.7, "ci95": [0.6, 0.8]}
    tasks = {f"metaworld-task{k}": {"success": value} for k in range(count)}
    entries = [
        {"name": name, "runs": 1, "mean": value, "iqm": value, "tasks": tasks} for name in "abc"
    ]
    figure = suite_overview({"entries": entries})
    overall, by_task = figure.axes
    assert [label.get_text() for label in overall.get_yticklabels()] == ["a", "b", "c"]
    labels = [label.get_text() for label in by_task.get_xticklabels()]
    assert labels == (["metaworld-task0"] if count == 1 else [f"task{k}" for k in range(count)])
    assert [text.get_text() for text in by_task.texts] == ["70"] * 3 * count
    assert figure_style.figure_to_svg(figure, "suite") == figure_style.figure_to_svg(
        figure, "suite"
    )


def test_interval_note_names_policies_with_one_training_run():
    entries = [{"name": "a", "runs": 3}, {"name": "b", "runs": 3}]
    result = {"episodes": 50, "entries": entries}
    assert "the episodes only" not in interval_note(result)
    entries[1]["runs"] = 1
    assert "one training run per task (b)" in interval_note(result)
    entries[0]["runs"] = 1
    assert "one training run per task (all)" in interval_note(result)
