"""Every study can be started: its options, configurations, checkpoints and results are valid."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from benchmarks import render_rollouts, run
from benchmarks.measurements import real_time, teleop_end_to_end
from benchmarks.measurements.scaling import ScalingStudy
from benchmarks.render_tables import FIGURES, TABLES
from benchmarks.studies import STUDIES
from benchmarks.studies.robots import EFFORTS, task_overrides
from benchmarks.study import StudyContext, all_entries, run_name
from benchmarks.training import compose_config
from ebt_policy import scaling
from ebt_policy.config import options as check_options
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.image.model import build_image_model
from ebt_policy.language import build_language_model
from ebt_policy.models.base import Model
from ebt_policy.policies import build_policy
from ebt_policy.training.trainer import TrainConfig
from ebt_policy.video import build_video_model

ROOT = Path(__file__).resolve().parent.parent


def parse_study(name: str, *arguments: str) -> tuple[Any, SimpleNamespace]:
    return run.parse_study([f"study={name}", *arguments])


def contexts(name: str) -> list[StudyContext]:
    study, options = parse_study(name)
    return [StudyContext(study, part, options, "") for part in study.parts.values()]


@cache
def untrained(arguments: tuple[str, ...]) -> Model:
    """Return the model that ``ebt_policy.train`` would build for data of small shapes."""
    config = compose_config(*arguments)
    check_options(TrainConfig, config["train"], "train")
    task = config["task"]
    if task["name"] == "text":
        words = {str(i): i for i in range(8)} | {"[MASK]": 8, "[UNK]": 9}
        return build_language_model(config, Tokenizer(WordLevel(words, unk_token="[UNK]")))
    if task["name"] == "image":
        shape = {k: task[k] for k in ("side", "channels", "patch", "max_noise_level")}
        return build_image_model({**config, "shape": shape | {"classes": 10 * task["classes"]}})
    if task["name"] == "video":
        return build_video_model({**config, "features": 8})
    cameras = {name: [96, 96] for name in task.get("cameras") or ()} or None
    relative_to, obs_dim = task.get("relative_to"), 60
    action_dim = len(relative_to) if relative_to else 4
    shape = {
        "obs_dim": obs_dim, "action_dim": action_dim, "relative_to": relative_to,
        "cameras": cameras, "max_prefix_len": task.get("max_prefix_len", 0),
        "horizon": 16, "n_obs_steps": 2, "n_action_steps": 8,
    }  # fmt: skip
    rows = {"obs": torch.rand(8, obs_dim), "action": torch.rand(8, action_dim)}
    return build_policy({**config, "shape": shape}, Normalizer.fit(rows))


@pytest.mark.parametrize("name", STUDIES)
def test_every_training_and_entry_can_be_configured(name):
    if name == "cameras":
        pytest.importorskip("timm")
    study, options = parse_study(name, "seeds=1")
    commands = [c for stage in study.training_commands(options) for c in stage]
    assert {command.run for command in commands} <= set(study.runs)
    models = {}
    for command in commands:
        arguments = (a for a in command.arguments if not a.startswith("run_dir="))
        models[command.run] = untrained(tuple(arguments))
    for part in study.parts.values():
        for entry in all_entries(part):
            assert study.runs_of(entry) or not study.runs, f"{entry} belongs to no run of the study"
            text = entry.format(**vars(options))
            for trained in study.runs_of(entry):
                models[trained].configure_inference(**parse_checkpoint(text)[1])


def test_every_run_of_a_study_is_trained():
    shared = {"energy_signals", "recovery_push_t", "recovery_push_t_selection"}  # runs of push_t
    shared |= {"language_wikitext2"}  # ebt_shallow is evaluated on TinyShakespeare only
    for name in set(STUDIES) - shared:
        study, options = parse_study(name, "seeds=1")
        commands = [c.run for stage in study.training_commands(options) for c in stage]
        assert sorted(commands) == sorted(study.runs), name


def test_results_have_unique_file_names():
    results = [context.result for name in STUDIES for context in contexts(name)]
    stored = [result for result in results if result]
    assert len(set(stored)) == len(stored)
    documents = {file.stem for file in (ROOT / "docs" / "results").glob("*.json")}
    # The claims of these studies are in docs/experiments.md; they are not measured yet.
    planned = {"ebt_policy", "ebt_policy_recovery", "ebt_policy_energy"}
    assert {r for r in stored if "denoising" not in r} <= documents | planned | {
        "recovery_lift", "recovery_metaworld-peg-insert-side",
    }  # fmt: skip
    assert set(FIGURES) <= set(stored) and "docs/push_t.md" in TABLES


def test_study_options_apply_to_trainings_checkpoints_and_results():
    study, options = parse_study(
        "denoising_set12", "size=s", "updates=7", "overrides=train.lr=1e-4"
    )
    (command, *_) = study.training_commands(options)[1]
    assert {"size=s", "train.steps=7", "train.lr=1e-4"} <= set(command.arguments)
    assert command.run_dir == Path("runs/denoising/grey_s/ebt-seed0")
    (context,) = contexts("denoising_set12")
    assert context.result == "denoising_set12_2xs"
    assert context.checkpoint("dit@steps=1,start_at_noise_level=false") == (
        "runs/denoising/grey_2xs/dit-seed*@steps=1,start_at_noise_level=false"
    )
    assert context.checkpoint("ebt-seed0") == "runs/denoising/grey_2xs/ebt-seed0"


def test_study_part_trains_only_the_runs_it_needs():
    study, options = parse_study("push_t", "part=next", "seeds=1")
    first, second = study.training_commands(options)
    assert first == [] and [c.run for c in second] == ["ebt", "diffusion", "flow_matching"]


def test_features_of_a_video_study_are_trained_before_its_models():
    study, options = parse_study("video_push_t", "folder=here")
    first, second = study.training_commands(options)
    assert [(c.run, c.seed) for c in first] == [("autoencoder", 0)]
    assert all("task.features=here/autoencoder-seed0" in c.overrides for c in second)
    assert {c.seed for c in second} == {0, 1, 2}


def test_teachers_of_every_seed_are_trained_before_their_students():
    study, options = parse_study("one_step", "folder=here")
    first, second = study.training_commands(options)
    assert {(c.run, c.seed) for c in first} == {
        (run, seed) for run in ("ebt_12500", "flow_matching") for seed in range(3)
    }
    assert {c.run for c in second} == {"ebt_reflow", "flow_reflow"}
    for command in second:
        teacher = {"ebt_reflow": "ebt_12500", "flow_reflow": "flow_matching"}[command.run]
        assert f"model.teacher='here/{teacher}-seed{command.seed}@steps=4'" in command.overrides


def test_members_of_products_are_trained():
    study, options = parse_study("composition", "seeds=1")
    assert study.used_products(options) == dict(study.products)
    trained = {c.run for stage in study.training_commands(options) for c in stage}
    assert {"ebt_a", "ebt_b", "flow_a", "flow_b"} <= trained
    assert "compose ebt_product of ebt_a, ebt_b" in run.plan(study, options)


def test_training_seeds_have_other_demonstrations():
    study, options = parse_study("few_data")
    commands = [c for stage in study.training_commands(options) for c in stage]
    parts = {c.seed: o for c in commands if c.run == "ebt_20" for o in c.overrides if "::" in o}
    assert parts == {seed: f"task.episodes={seed}::20" for seed in range(3)}


def test_demonstrations_are_recorded_once_and_trained_on():
    study, options = parse_study("recovery_lift_disturbed")
    (recording,) = study.recordings(options)
    path = recording.path(Path(options.folder))
    assert {f"output={path}", "perturb=object=8", "task=lift"} <= set(
        recording.command(Path("runs/manipulation"))
    )
    assert all(f"task.path={path}" in c.overrides for c in study.training_commands(options)[1])


def test_tasks_of_a_suite_are_valid_overrides():
    assert task_overrides("lift") == ("task=lift",)
    task = compose_config(*task_overrides("metaworld-door-open"))["task"]
    assert task["name"] == "metaworld-door-open"
    for name in ("push_t_image", "lift-cameras", "metaworld-drawer-open-cameras"):
        task = compose_config(*task_overrides(name))["task"]
        assert task["cameras"] and name.startswith(task["name"])
    assert {file.stem for file in (ROOT / "configs" / "suite").glob("*.yaml")} == set(EFFORTS)


@pytest.mark.parametrize("axis", STUDIES["scaling"].parts)
def test_scaling_studies_have_known_settings(axis):
    _, options = parse_study("scaling", "parallel=2")
    study, settings = scaling.parse(ScalingStudy(axis).arguments(options))
    assert (study.axis, study.seeds) == (axis, 3) and settings["task.corpus"] == "wikitext2"


def test_commands_of_the_control_loop_are_known():
    _, options = parse_study("teleop")
    config = compose_config(*teleop_end_to_end.train_arguments(options))
    assert config["train"]["minutes"] == 10 and config["run_dir"] == "runs/collect/learned"
    compose_run(*teleop_end_to_end.run_arguments(options))
    compose_run(*real_time.run_arguments("sim_push_t", "runs/a", 1, Path("out")))


def compose_run(*arguments: str) -> None:
    from hydra import compose, initialize_config_module

    with initialize_config_module("ebt_policy.configs", version_base="1.3"):
        compose("run", list(arguments))


def test_videos_show_trained_entries():
    for runs, _ in render_rollouts.VIDEOS.values():
        study = STUDIES[f"recovery_{runs}"]
        for entry in render_rollouts.POLICIES:
            assert study.runs_of(f"{runs}/{entry}"), entry


def test_dry_run_prints_the_plan_of_every_study(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in STUDIES:
        monkeypatch.setattr(sys, "argv", ["run", f"study={name}", "dry_run=true", "seeds=1"])
        run.main()
        assert "store docs/results/" in capsys.readouterr().out or name == "video_example"
    assert list(tmp_path.iterdir()) == []


def test_missing_study_lists_all_studies(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run"])
    run.main()
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in STUDIES)
    assert all(len(line) <= 200 for line in text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study=chess"], "study=chess is unknown.\nstudies:\n  push_t"),
        (["seeds=3"], "exactly one option study=NAME"),
        (["study=push_t", "sise=xs"], "unknown option 'sise=xs'; available: part, seeds"),
        (["study=push_t", "seeds=many"], "seeds must be an integer, got 'many'"),
        (["study=push_t", "seeds"], "unknown option 'seeds'"),
        (["study=push_t", "part=tables"], "part must be one of all, table, next, selection"),
        (["study=push_t", "dry_run=1"], "dry_run must be true or false, got '1'"),
        (["study=generation", "features=x"], "features must be one of classifier, inception"),
    ],
)
def test_invalid_options_are_refused(arguments, message):
    with pytest.raises(SystemExit) as error:
        run.parse_study(arguments)
    assert message in str(error.value)


def test_missing_package_is_named_before_training(monkeypatch):
    study, options = parse_study("denoising_set12")
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install bm3d"):
        run.execute(study, options, "")


def test_run_name_excludes_seed_and_options():
    assert run_name("ebt-4xs@steps=2") == "ebt-4xs" and run_name("dit-seed0@steps=1") == "dit"


def test_commands_of_the_documents_exist():
    text = "\n".join(
        (ROOT / name).read_text()
        for name in ("Makefile", "README.md", *(f"docs/{f.name}" for f in ROOT.glob("docs/*.md")))
    )
    for module in set(re.findall(r"-m (benchmarks[.\w]*\w)", text)):
        assert importlib.util.find_spec(module), module
    for study, rest in re.findall(r"benchmarks\.run study=([\w-]+)((?: \w+=[\w.-]+)*)", text):
        parse_study(study, *rest.split())
    for studies, rest in re.findall(r"call run-studies,([^,)]+),?([^)]*)\)", text):
        for study in studies.split():
            parse_study(study, *rest.split())


@pytest.mark.slow
def test_study_runs_at_toy_size(tmp_path):
    """The command trains, evaluates all entries and stores the result."""
    arguments = ("push_t", "part=next", "seeds=1", "episodes=2")
    study, options = parse_study(*arguments)
    (part,) = study.selected_parts(options).values()
    toy = (
        "overrides=size=4xs train.steps=2 train.minutes=null train.compile=false "
        "train.batch_size=4 train.log_every=1 task.env.max_steps=60"
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", f"study={arguments[0]}", *arguments[1:],
         "parallel=1", toy],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    stored = json.loads((tmp_path / "docs" / "results" / f"{part.result}.json").read_text())
    assert stored["entries"]
