"""The recovery evaluation: conditions, resuming and summary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import copy_run

from ebt_policy.envs import rollout
from ebt_policy.envs.perturbations import Perturbation, PerturbationKind
from ebt_policy.envs.push_t_env import PushTEnv
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.statistics import wilson
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies
from ebt_policy.policies.robustness import (
    UNDISTURBED,
    evaluate_robustness,
    parse_perturbations,
    summarize,
    table,
)
from ebt_policy.train import train

KNOWN_PERTURBATIONS = {
    "kick": PerturbationKind("px", (10.0, 20.0)),
    "delay": PerturbationKind("steps", (1.0,)),
}
CONFIG = EvalConfig(episodes=2, seed=5, videos=0, workers=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, demonstrations) -> Path:
    """Return a folder with two training runs of one policy and one run of another policy."""
    from conftest import TINY, compose_config

    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in {"ebt-seed0": (), "bc": ("model=bc", "task.n_action_steps=4")}.items():
        config = compose_config(*TINY, "train.steps=3", *overrides)
        config["task"]["path"], config["run_dir"] = str(demonstrations), str(folder / name)
        train(config)
    copy_run(folder / "ebt-seed0", folder / "ebt-seed1", "seed", 1)
    return folder


def evaluate(runs: Path, output: Path, perturb="kick=40", config=CONFIG):
    return evaluate_robustness(
        [f"{runs}/ebt-seed*@num_candidates=2", f"{runs}/bc"],
        config,
        perturb,
        output=output,
        device=torch.device("cpu"),
        command="test",
    )


def test_parse_perturbations_returns_conditions():
    kick = [Perturbation("kick", 10.0), Perturbation("kick", 20.0)]
    assert parse_perturbations("kick", KNOWN_PERTURBATIONS) == [None, *kick]
    assert parse_perturbations("all", KNOWN_PERTURBATIONS) == [
        None,
        *kick,
        Perturbation("delay", 1),
    ]
    assert parse_perturbations(["kick=35", "kick=35", "delay"], KNOWN_PERTURBATIONS) == [
        None,
        Perturbation("kick", 35.0),
        Perturbation("delay", 1.0),
    ]
    assert len(parse_perturbations("all", PushTEnv.perturbations)) == 1 + 3 * 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("wind", "perturb=wind is unknown; there are kick, delay, or all."),
        ("kick=hard", "perturb=kick=hard"),
        ("kick=-3", "must be at least 0"),
        ("delay=0.5", "a whole number of steps"),
    ],
)
def test_parse_perturbations_rejects_invalid_words(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_perturbations(words, KNOWN_PERTURBATIONS)


@pytest.mark.slow
def test_cached_conditions_are_not_rerun(runs, tmp_path, monkeypatch):
    result = evaluate(runs, tmp_path)
    assert {e["name"] for e in result["entries"]} == {"ebt (candidates 2)", "bc"}
    assert {(e["kind"], e["strength"]) for e in result["entries"]} == {
        ("undisturbed", 0.0),
        ("kick", 40.0),
        ("all", 0.0),
    }
    assert {(p["a"], p["b"]) for p in result["paired"]} == {("ebt (candidates 2)", "bc")}
    assert json.loads((tmp_path / "recovery.json").read_text()) == result
    assert "kick 40 px" in (tmp_path / "recovery.md").read_text()
    assert (tmp_path / "recovery.svg").read_text().startswith("<?xml")
    log = (tmp_path / "recovery.jsonl").read_text()
    assert len(log.splitlines()) == 2 * 3  # conditions times training runs

    class ForbiddenPool:
        def __init__(self, *_):
            raise AssertionError("played again")

    monkeypatch.setattr(rollout, "RolloutPool", ForbiddenPool)
    assert evaluate(runs, tmp_path) == result
    with pytest.raises(AssertionError, match="played again"):  # other seeds are not cached
        evaluate(runs, tmp_path, config=replace(CONFIG, seed=6))


def test_policies_of_other_environments_are_refused(runs, tmp_path):
    copy_run(runs / "bc", tmp_path / "hasty", "task.env.max_steps", 5)
    with pytest.raises(ConfigError, match="equal time limits"):
        evaluate_robustness(
            [f"{runs}/bc", f"{tmp_path}/hasty"],
            CONFIG,
            "kick",
            output=tmp_path,
            device=torch.device("cpu"),
            command="test",
        )
    assert not (tmp_path / "recovery.jsonl").exists()


@pytest.mark.slow
def test_incomplete_cache_lines_are_rerun(runs, tmp_path):
    result = evaluate(runs, tmp_path)
    log = tmp_path / "recovery.jsonl"
    log.write_text(log.read_text()[:-25])
    assert evaluate(runs, tmp_path) == result
    lines = [json.loads(line) for line in log.read_text().splitlines()]  # none is incomplete
    assert len(lines) == 2 * 3


def test_summary_and_pairs_use_all_runs():
    rng = np.random.default_rng(0)

    def random_results(runs, shift):
        values = rng.uniform(size=(runs, 20)) / 2 + shift
        return {"score": values, "success": (values > 0.5).astype(float)}

    kick = Perturbation("kick", 10.0)
    a = {None: random_results(3, 0.5), kick: random_results(3, 0.4)}
    b = {None: random_results(1, 0.5), kick: random_results(1, 0.0)}
    result = summarize({"a": a, "b": b}, KNOWN_PERTURBATIONS, "test")
    assert (result["runs"], result["episodes"]) == (3, 20)
    (pair,) = [p for p in result["paired"] if p["kind"] == "kick" and p["metric"] == "score"]
    assert pair["ci95"][0] > 0
    overall = [e for e in result["entries"] if e["kind"] == "all" and e["name"] == "a"]
    alone = [e for e in result["entries"] if e["kind"] == "kick" and e["name"] == "a"]
    assert overall[0]["score"] == alone[0]["score"]
    never = [e["success"] for e in result["entries"] if e["kind"] != UNDISTURBED][2:]
    assert never == [wilson(0, 20)] * 2  # of b's only run, for kick and for all
    assert "| mean of all disturbed |" in table(result)


def test_conditions_pair_the_runs_of_the_same_policy():
    values = np.arange(3)[:, None] / 4 + np.zeros((3, 5))
    kick = Perturbation("kick", 10.0)

    def outcomes(shift):
        results = {"score": values + shift, "success": np.zeros((3, 5))}
        return {None: results, kick: results}

    played = {"a": outcomes(0.1), "b": outcomes(0.0)}
    for runs, is_joint in (({"a": 0, "b": 0}, True), ({"a": 0, "b": 1}, False), (None, False)):
        for pair in summarize(played, KNOWN_PERTURBATIONS, "test", runs)["paired"]:
            if pair["metric"] == "score":
                assert (np.ptp(pair["ci95"]) < 1e-9) == is_joint


def test_runs_that_differ_in_more_than_their_seed_are_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"differ in their seed alone, .* differ in (model|size)"):
        evaluate_policies(
            [f"{runs}/*"], CONFIG, output=tmp_path, device=torch.device("cpu"), command="test"
        )
    with pytest.raises(ConfigError, match="no folder matches"):
        evaluate_policies(
            [f"{runs}/x*"], CONFIG, output=tmp_path, device=torch.device("cpu"), command="test"
        )


@pytest.mark.slow
def test_runs_of_one_policy_form_one_entry(runs, tmp_path):
    result = evaluate_policies(
        [f"{runs}/ebt-seed*", f"{runs}/bc"],
        CONFIG,
        output=tmp_path,
        device=torch.device("cpu"),
        command="test",
    )
    (ebt, bc) = result["entries"]
    assert ebt["name"] == "ebt" and ebt["train_seed"] == [0, 1] and bc["train_seed"] == 0
    assert ebt["episodes"] == bc["episodes"] == 2
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert sorted((r["train_seed"], r["seed"]) for r in lines if r["entry"] == "ebt") == [
        (0, 5), (0, 6), (1, 5), (1, 6),
    ]  # fmt: skip
    assert "played by 1 or 2 training runs" in (tmp_path / "table.md").read_text()
