"""The evaluation command: comparisons, cached rollouts, perturbations and argument errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, compose_config

from ebt_policy.envs.rollout import RolloutPool
from ebt_policy.errors import ConfigError
from ebt_policy.eval import main
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.io.output import output_folder
from ebt_policy.policies import Policy
from ebt_policy.policies.entries import PolicyEntry, load_policy_entries
from ebt_policy.train import train

SHORT = ["episodes=3", "workers=1", "videos=0", "device=cpu"]


@pytest.fixture
def run_main(monkeypatch, call_entry, tmp_path):
    """Return a function that runs the command and returns (exit code, stderr)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: call_entry(main, *arguments)


@pytest.fixture(scope="module")
def trained(demonstrations, tmp_path_factory) -> Path:
    config = compose_config(*TINY, "train.steps=2")
    config["task"]["path"] = str(demonstrations)
    config["run_dir"] = str(tmp_path_factory.mktemp("runs") / "trained")
    return train(config)


@pytest.mark.slow
def test_two_inference_settings_are_compared_over_the_same_seeds(run_main, trained):
    code, error = run_main(
        f"checkpoint={trained}", f"checkpoint={trained}@steps=3,num_candidates=3", *SHORT
    )
    assert (code, error) == (0, "")
    results = Path("results") / "trained-vs-trained-steps3-candidates3"
    summary = json.loads((results / "summary.json").read_text())
    default, changed = summary["entries"]
    assert (default["name"], changed["name"]) == ("trained", "trained (steps 3, candidates 3)")
    assert (default["steps"], changed["steps"]) == (2, 3) and default["params"] == changed["params"]
    assert [default["steps_used"]["mean"], changed["steps_used"]["mean"]] == [2, 3]
    assert [p["metric"] for p in summary["paired"]] == ["score", "success"]
    for pair in summary["paired"]:
        assert (pair["a"], pair["b"]) == (default["name"], changed["name"])
        metric = pair["metric"]
        assert pair["diff"] == pytest.approx(default[metric]["mean"] - changed[metric]["mean"])
        low, high = pair["ci95"]
        assert low <= pair["diff"] <= high
    table = (results / "table.md").read_text()
    assert "trained (steps 3, candidates 3)" in table and "Paired differences" in table
    assert (results / "report.html").stat().st_size > 10_000
    episodes = [json.loads(x) for x in (results / "episodes.jsonl").read_text().splitlines()]
    assert [x["seed"] for x in episodes] == 2 * [100_000, 100_001, 100_002]
    assert default["command"].startswith(
        f"python -m ebt_policy.eval checkpoint={trained} checkpoint="
    )


@pytest.mark.slow
def test_results_go_to_the_output_folder_and_are_deterministic(run_main, trained, tmp_path):
    results = []
    for name in ("first", "second"):
        out = tmp_path / name
        assert run_main(f"checkpoint={trained}", f"output={out}", *SHORT) == (0, "")
        rows = [json.loads(x) for x in (out / "episodes.jsonl").read_text().splitlines()]
        results.append([(x["seed"], x["score"], x["success"], x["length"]) for x in rows])
    assert results[0] == results[1]
    assert not Path("results").exists()


@pytest.mark.slow
def test_finished_rollouts_are_cached(run_main, trained, tmp_path, monkeypatch):
    """After a failed report, the same command resumes from the finished rollouts."""
    out, arguments = tmp_path / "out", (f"checkpoint={trained}", f"output={tmp_path}/out", *SHORT)

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("ebt_policy.evaluation.evaluator.write_report", broken)
        code, error = run_main(*arguments)
    assert code == 2 and "No space left on device" in error
    assert len((out / "played.jsonl").read_text().splitlines()) == 1
    assert not list(out.glob(".lock*"))
    monkeypatch.setattr(RolloutPool, "rollout", broken)
    assert run_main(*arguments) == (0, "")
    assert json.loads((out / "summary.json").read_text())["entries"][0]["episodes"] == 3


def test_unwritable_output_is_refused_before_loading(run_main, trained, monkeypatch):
    monkeypatch.setattr(
        "ebt_policy.policies.evaluate.load_policy_entries", None
    )  # loading entries would fail
    Path("taken").write_text("")
    code, error = run_main(f"checkpoint={trained}", "output=taken", *SHORT)
    assert code == 2 and error.startswith("error: output=taken cannot be written (")
    with output_folder(Path("mine"), "output"):
        code, error = run_main(f"checkpoint={trained}", "output=mine", *SHORT)
        assert code == 2 and "mine is in use by process" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=RUN", "seed=4294967295", "episodes=2"], "beyond the last seed, 4294967295"),
        (["checkpoint=RUN", "seed=99999999999"], "beyond the last seed"),
        (["checkpoint=RUN@scoring_level=.nan"], "scoring_level must be a finite number, got nan"),
        ([], "missing required option checkpoint=RUN"),
        (["checkpoint=nowhere"], "there is no checkpoint at nowhere."),
        (["checkpoint=RUN", "checkpoint=nowhere"], "there is no checkpoint at nowhere."),
        (["checkpoint=RUN/checkpoints"], "has no model.safetensors; is it a checkpoint folder?"),
        (["checkpoint=RUN@steps"], "after @ write name=value, got 'steps'."),
        (["checkpoint=RUN@=2"], "after @ write name=value, got '=2'."),
        (
            ["checkpoint=RUN@wings=2"],
            "has no option wings; it has metropolis_steps",
        ),
        (["checkpoint=RUN@steps=0"], "at least 1"),
        (["checkpoint=RUN@steps=two"], "steps must be an integer, got 'two'."),
        (
            ["checkpoint=RUN@select=luck"],
            "must be one of energy, energy_decrease, medoid, density",
        ),
        (["checkpoint=RUN@scheduler=ddim"], "has no option scheduler"),
        (["checkpoint=RUN", "checkpoint=RUN"], "trained is listed twice"),
        (["checkpoint=RUN", "episodes=0"], "episodes must be at least 1, got 0."),
        (["checkpoint=RUN", "episodes=all"], "episodes must be an integer, got 'all'."),
        (["checkpoint=RUN", "perturb=all", "episodes=0"], "episodes must be at least 1, got 0."),
        (["checkpoint=RUN", "perturb=wind=3"], "perturb=wind=3 is unknown"),
        (["checkpoint=RUN", "perturb=kick", "perturb=turn=far"], "perturb=turn=far"),
        (["checkpoint=RUN", "workers=0"], "workers must be at least 1, got 0."),
        (["checkpoint=RUN", "device=tpu"], "device must be auto, cpu or cuda, got tpu."),
    ],
)
def test_user_errors_are_one_line(arguments, message, run_main, trained):
    code, error = run_main(*[a.replace("RUN", str(trained)) for a in arguments])
    assert code == 2 and message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_equal_run_names_get_unique_names_by_folder(trained, tmp_path):
    for name in ("a/run", "b/run", "b/other"):
        shutil.copytree(trained, tmp_path / name)
    checkpoints = [f"{tmp_path}/a/run@steps=2", f"{tmp_path}/b/run@steps=2", f"{tmp_path}/b/other"]
    entries = load_policy_entries(checkpoints, torch.device("cpu"))
    assert [c.name for c in entries] == ["a/run (steps 2)", "b/run (steps 2)", "other"]


def test_unknown_options_are_named(run_main, trained):
    code, error = run_main(f"checkpoint={trained}", "wings=2")
    assert code == 2 and "unknown option wings" in error


@pytest.mark.slow
@pytest.mark.parametrize("words", [["perturb=kick=50", "perturb=delay=1"], ["perturb=[delay]"]])
def test_perturbations_are_a_repeated_option_or_a_list(words, run_main, trained, tmp_path):
    arguments = [f"checkpoint={trained}", *words, f"output={tmp_path}/out", *SHORT[1:]]
    assert run_main(*arguments, "episodes=1") == (0, "")
    lines = (tmp_path / "out" / "recovery.jsonl").read_text().splitlines()
    conditions = [json.loads(line)["key"].rpartition(" | ")[2] for line in lines]
    kinds = ["kick 50", "delay 1"] if len(words) == 2 else ["delay 1", "delay 2", "delay 4"]
    assert conditions == ["undisturbed", *kinds]


def test_damaged_weights_are_named(run_main, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "damaged")
    (weights,) = (tmp_path / "damaged").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:500])
    code, error = run_main(f"checkpoint={tmp_path}/damaged", *SHORT)
    assert code == 2 and str(weights) in error and error.count("\n") == 1


def test_binary_configuration_file_is_named(run_main, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "damaged")
    (config,) = (tmp_path / "damaged" / "checkpoints").rglob("config.yaml")
    config.write_bytes(b"\x00\xff")
    code, error = run_main(f"checkpoint={tmp_path}/damaged", *SHORT)
    assert code == 2 and f"{config} cannot be read" in error and error.count("\n") == 1


def test_checkpoint_arguments_are_parsed(tmp_path):
    assert parse_checkpoint("runs/a") == (Path("runs/a"), {})
    path, changes = parse_checkpoint("runs/a@steps=8,stop_grad_norm=1e-3,select=energy_decrease")
    assert path == Path("runs/a")
    assert changes == {"steps": 8, "stop_grad_norm": 0.001, "select": "energy_decrease"}
    odd = tmp_path / "me@home" / "run"
    odd.mkdir(parents=True)
    assert parse_checkpoint(str(odd)) == (odd, {})
    assert parse_checkpoint(f"{odd}@steps=2") == (odd, {"steps": 2})
    with pytest.raises(ConfigError, match="write name=value"):
        parse_checkpoint("runs/a@steps=[1")


def test_training_seeds_may_have_their_own_demonstrations(tiny, demonstrations, tmp_path):
    for seed in (0, 1):
        config = tiny(f"run-seed{seed}", f"seed={seed}")
        config["task"]["path"] = str(shutil.copytree(demonstrations, tmp_path / f"data{seed}"))
        train(config)
    entry = PolicyEntry.load(f"{tmp_path}/run-seed*", Policy.from_checkpoint)
    assert len(entry.models) == 2
    for seed in (0, 1):  # without an environment, the demonstrations are also the test data
        for file in (tmp_path / f"run-seed{seed}").rglob("config.yaml"):
            stored = yaml.safe_load(file.read_text())
            stored["task"]["env"] = None
            file.write_text(yaml.safe_dump(stored))
    with pytest.raises(ConfigError, match=r"run-seed0, run-seed1 differ in task\.path\."):
        PolicyEntry.load(f"{tmp_path}/run-seed*", Policy.from_checkpoint)
