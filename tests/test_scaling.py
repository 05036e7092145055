"""Scaling studies: the fit, options, the grid of runs and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import get_class
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language_models import TEXT, build

from ebt_policy import scaling
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.flops import training_work
from ebt_policy.evaluation.scaling_law import Point, scaling_law
from ebt_policy.language.data import TokenWindows
from ebt_policy.language.scaling import AXES, RunGrid, multirun_products

SMALL = (
    "task.context=8", "size.width=16", "size.heads=2", "train.steps=4", "train.batch_size=2",
    "train.warmup_steps=2", "device=cpu", "size.layers=1,2", "seeds=2", "tune=false",
)  # fmt: skip


def points(rate: float, level: float, flops: float = 1.0, noise: float = 0.0, seed: int = 0):
    """Return points at 1, 2, 4 and 8 of runs that follow a power law."""
    rng = np.random.default_rng(seed)
    return [
        Point(
            x, flops * x, 10 * x, level - rate * math.log(x) + noise * rng.normal(size=(3, 20)), 1
        )
        for x in (1, 2, 4, 8)
    ]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.floats(0.05, 1.0), st.floats(0.05, 1.0), st.floats(-1, 1))
def test_power_law_is_recovered(rate, base_rate, above):
    laws = scaling_law({"a": points(rate, 3 + above), "b": points(base_rate, 3)})
    a = laws["a"]
    assert a["rate"]["mean"] == pytest.approx(rate, rel=1e-6)
    assert a["ratio"]["mean"] == pytest.approx(rate / base_rate, rel=1e-6)
    lead = (base_rate - rate) * math.log(8) / 2
    assert a["same_place"]["mean"] == pytest.approx(above + lead, abs=1e-6)
    assert a["equal_flops"]["mean"] == pytest.approx(above + lead, abs=1e-6)
    assert laws["b"]["ratio"] == {"mean": 1.0, "ci95": [1.0, 1.0]}


def test_intervals_cover_the_true_rate_and_grow_with_noise():
    widths = []
    for noise in (0.01, 0.1):
        law = scaling_law({"a": points(0.3, 3, noise=noise), "b": points(0.2, 3, noise=noise)})
        low, high = law["a"]["rate"]["ci95"]
        assert low < 0.3 < high
        widths.append(high - low)
    assert widths[1] > 5 * widths[0]


def test_models_are_compared_at_equal_flops():
    """With four times the FLOPs at each point, the comparison is in the middle of the overlap."""
    law = scaling_law({"a": points(0.2, 3, flops=4), "b": points(0.2, 3)})["a"]
    assert law["same_place"]["mean"] == pytest.approx(0.0)
    assert law["equal_flops"]["flops"] == pytest.approx(math.sqrt(4 * 8))
    assert law["equal_flops"]["mean"] == pytest.approx(0.2 * math.log(4))
    assert (
        scaling_law({"a": points(0.2, 3, flops=100), "b": points(0.2, 3)})["a"]["equal_flops"]
        is None
    )


def test_power_law_needs_two_points():
    with pytest.raises(ValueError, match="two values of x"):
        scaling_law({"a": points(0.2, 3)[:1]})
    with pytest.raises(ValueError, match="equally many points"):
        scaling_law({"a": points(0.2, 3)[:2], "b": points(0.2, 3)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing required option axis=data"),
        (["axis=height"], "axis must be one of data"),
        (["axis=depth", "seeds=0"], "seeds must be at least 1"),
        (["axis=depth", "seeds=two"], "seeds"),
        (["axis=depth", "models=ebt,ebt"], "names a model twice"),
        (["axis=depth", "--multirun"], "write name=value"),
        (["axis=depth", "seed=3"], "seed=... is set by the study"),
        (["axis=depth", "tune=perhaps"], "tune"),
        (["axis=depth", "train.lr=fast"], "train.lr must be a number, got fast"),
        (["axis=depth", "train.lr=1e-3,2e-3"], "train.lr has several"),
        (["axis=depth", "size.layers=2"], "needs several values of size.layers"),
        (["axis=depth", "size.width=16,32"], "size.width has several"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        scaling.parse(arguments)


def grid(*arguments: str) -> RunGrid:
    return RunGrid(*scaling.parse([*arguments]), torch.device("cpu"))


def test_run_names_contain_the_scaled_options():
    """A run that lies on several axes has the same name on each of them."""
    named = {}
    for axis in AXES:
        run_grid = grid(f"axis={axis}", "models=ebt")
        named[axis] = {
            place: run_grid.run(("ebt", place), 0.002, 0).name for place in run_grid.places
        }
    assert named["depth"]["2"] == named["width"]["64"] == named["data"]["1000"]
    assert named["depth"]["2"] == named["batch"]["8"] == "ebt-w64-l2-b8-n1000-lr0.002-seed0"
    assert named["params"] == named["flops"] and len(set(named["params"].values())) == 4


def test_learning_rate_of_each_cell_is_a_local_minimum(monkeypatch):
    run_grid = grid("axis=depth", "size.layers=1,2", "models=ebt,transformer_pp", "train.lr=2e-3")
    best = {
        ("ebt", "1"): 0.0005, ("ebt", "2"): 0.001,
        ("transformer_pp", "1"): 0.008, ("transformer_pp", "2"): 0.002,
    }  # fmt: skip
    trained: list[tuple] = []

    def train(rates, seeds):
        assert seeds == [0]
        trained.extend((cell, rate) for cell, several in rates.items() for rate in several)

    monkeypatch.setattr(run_grid, "train", train)
    monkeypatch.setattr(run_grid, "run", lambda cell, rate, seed: (cell, rate))
    monkeypatch.setattr(
        run_grid, "losses", lambda run, part: np.full(3, abs(math.log(run[1] / best[run[0]])))
    )
    assert run_grid.tune_learning_rates() == best
    assert len(trained) == len(set(trained)) == 5 + 4 + 5 + 3


CELLS = st.tuples(st.sampled_from("abc"), st.sampled_from("1234"))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.dictionaries(CELLS, st.sets(st.sampled_from([0.1, 0.2, 0.4]), min_size=1)))
def test_multiruns_cover_each_run_once(rates):
    done = [
        (model, place, rate)
        for models, places, shared in multirun_products(rates)
        for model in models
        for place in places
        for rate in shared
    ]
    assert sorted(done) == sorted(
        (*cell, rate) for cell, cell_rates in rates.items() for rate in cell_rates
    )


def test_flops_equal_the_matrix_products():
    """Transformer++ needs 2 FLOPs per weight and token, and 4 more in the backward pass."""
    model = build("transformer_pp")
    tokens = np.arange(40) % model.vocabulary
    flops = training_work(model, TokenWindows(tokens, 8).gather(torch.arange(4))).flops
    block = model.net.blocks[0]
    width, layers = model.net.width, len(model.net.blocks)
    weights = layers * sum(p.numel() for p in block.parameters() if p.ndim == 2)
    weights += model.embedding.weight.numel()
    attention = layers * 2 * 8 * width  # queries with keys, weights with values
    assert flops == pytest.approx(6 * 4 * 8 * (weights + attention), rel=1e-9)


@pytest.mark.sweeps
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_launchers_are_installed(launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    with initialize_config_module("ebt_policy.configs", version_base="1.3"):
        chosen = compose(
            "train", [f"hydra/launcher={launcher}", "task=text"], return_hydra_config=True
        )
        assert get_class(chosen.hydra.launcher._target_)


@pytest.fixture
def study_folder(tmp_path, monkeypatch) -> Path:
    """Return a working directory with a text, and a cache of its own."""
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text(TEXT, "utf-8")
    return tmp_path


STUDY = ["axis=depth", "task.path=mine.txt", "models=ebt,transformer_pp", *SMALL]


@pytest.mark.slow
@pytest.mark.sweeps
@pytest.mark.parametrize(
    "launcher",
    [("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), ("hydra/launcher=submitit_local",)],
)
def test_launchers_run_the_trainings(launcher, study_folder):
    result = scaling.scaling([*STUDY, "seeds=1", *launcher])
    assert len(list((study_folder / "runs/scaling").iterdir())) == 4
    assert [point["x"] for point in result["models"]["ebt"]["points"]] == [1, 2]


@pytest.mark.slow
def test_scaling_study_writes_a_table_and_resumes(study_folder, capfd):
    result = scaling.scaling(STUDY)
    output = study_folder / "results/scaling-depth"
    stored = json.loads((output / "summary.json").read_text())
    assert stored["models"] == json.loads(json.dumps(result["models"]))
    ebt, base = result["models"]["ebt"], result["models"]["transformer_pp"]
    assert [p["x"] for p in ebt["points"]] == [1, 2]
    assert all(
        a["flops"] > 2 * b["flops"] for a, b in zip(ebt["points"], base["points"], strict=True)
    )
    assert "difference at equal FLOPs" in (output / "table.md").read_text()
    assert {p["lr"] for p in ebt["points"]} == {0.002}
    assert (output / "scaling.svg").stat().st_size > 1000
    assert len(list((study_folder / "runs/scaling").iterdir())) == 8
    (study_folder / "runs/scaling/ebt-w16-l2-b2-n4-lr0.002-seed1/test.npy").unlink()
    capfd.readouterr()
    assert scaling.scaling(STUDY)["models"] == result["models"]
    assert capfd.readouterr().out.count("resumed at step 4") == 8


@pytest.mark.slow
def test_failed_training_ends_the_study(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a training run failed"):
        scaling.scaling(["axis=depth", "task.path=nothing.txt", *SMALL])
    assert "there is no text at nothing.txt" in capfd.readouterr().err
