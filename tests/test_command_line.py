"""Help, configuration and argument errors of every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebt_policy import convert, generate, record, scaling, train
from ebt_policy import eval as eval_entry
from ebt_policy.cli.composition import compose_config, flatten
from ebt_policy.cli.help import option_comments
from ebt_policy.real_robot import run, sim_node

ENTRIES = {
    "train": train, "eval": eval_entry, "record": record, "generate": generate,
    "run": run, "convert": convert, "sim_node": sim_node, "scaling": scaling,
}  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Return a function that runs an entry and returns its exit code, stdout and stderr."""

    def run_main(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        code = 0
        try:
            ENTRIES[name].main()
        except SystemExit as error:
            code = int(error.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run_main


@pytest.mark.parametrize("name", ENTRIES)
def test_help_exits_without_an_error(name, call):
    code, text, error = call(name, "--help")
    assert (code, error) == (0, "")
    assert text.startswith("usage: ") and "Hydra" not in text


def test_help_shows_the_options_of_the_selected_task_and_model(call):
    _, text, _ = call("train", "task=lift", "model=diffusion", "--help")
    assert "Options of task=lift:" in text and "task.scene=Lift" in text
    assert "model.inference.scheduler=ddpm" in text
    assert "Examples:\n  ebt-train task=push_t" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "overrides",
    [
        *((f"task={task}",) for task in ("push_t", "lift", "metaworld", "text", "image", "video")),
        *(("task=push_t", f"model={m}") for m in ("diffusion", "flow_matching", "bc", "ibc")),
        *(("task=push_t", f"objective={o}") for o in ("s1", "s2", "equilibrium", "contrastive")),
        ("task=text", "model=masked_ebt"),
        ("task=image", "model=dit"),
        ("task=video", "model=autoencoder"),
    ],
    ids=" ".join,
)
def test_every_option_has_a_description(overrides):
    from ebt_policy.cli.composition import compose_with_choices

    config, choices = compose_with_choices("train", overrides)
    comments = option_comments("train", choices)
    hidden = ("domain", "vision", *(f"{group}.name" for group in choices))
    names = [n for n in flatten(config) if n not in hidden and "kwargs" not in n]
    assert [name for name in names if name not in comments] == []


def test_config_dir_adds_the_users_configurations(call, tmp_path):
    folder = tmp_path / "my configs" / "robot"
    folder.mkdir(parents=True)
    (folder / "desk.yaml").write_text("defaults: [push_t]\nname: desk\ndriver: { name: sim }\n")
    code, text, error = call("run", "--config-dir", str(folder.parent), "robot=desk", "--cfg")
    assert (code, error) == (0, "") and "name: desk" in text
    assert call("run", f"--config-dir={folder.parent}", "robot=desk", "--help")[0] == 0
    _, _, error = call("run", "--config-dir", str(folder.parent), "robot=desc")
    assert "Did you mean desk?" in error
    _, _, error = call("run", "--config-dir", "nowhere", "robot=desk")
    assert "--config-dir needs a folder of configurations, got 'nowhere'" in error


def test_cfg_prints_the_configuration(call):
    code, text, error = call("train", "task=lift", "--cfg", "job")
    assert (code, error) == (0, "")
    assert "  scene: Lift\n" in text and "run_dir: runs/lift/ebt-xs-seed0\n" in text


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ("task=pusht",), "task=pusht is unknown. Did you mean push_t?"),
        ("train", ("tassk=push_t",), "unknown option tassk. Did you mean task?"),
        ("train", ("train.stepz=3",), "unknown option train.stepz. Did you mean train.steps?"),
        ("train", ("train.steps",), "'train.steps' cannot be parsed; write name=value"),
        ("train", ("train.steps=[",), "'train.steps=[' cannot be parsed"),
        ("train", ("model=refiner",), "model=refiner is not available for policy; it is for"),
        ("train", ("--fast",), "unknown flag --fast; options are NAME=VALUE"),
        ("train", ("train.lr=abc",), "train.lr must be a number, got 'abc'"),
        ("eval", ("--multirun",), "unknown flag --multirun"),
        ("eval", ("episode=3",), "unknown option episode. Did you mean episodes?"),
        ("record", (), "missing required option task=NAME, one of adroit_door"),
        ("run", ("robot=sim",), "robot=sim is unknown. Did you mean sim_lift?"),
    ],
)
def test_invalid_arguments_are_a_one_line_error(name, arguments, message, call, tmp_path):
    code, _, error = call(name, *arguments)
    assert code == 2 and message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_help_takes_less_than_twice_the_time_of_importing_torch(tmp_path):
    """CPU time is compared because other processes hardly change it."""

    def seconds(*arguments: str) -> float:
        before = os.times()
        environment = {**os.environ, "PYTHONPATH": str(Path(train.__file__).parent.parent)}
        subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, check=True,
                       capture_output=True)  # fmt: skip
        after = os.times()
        return (after.children_user - before.children_user) + (
            after.children_system - before.children_system
        )

    torch_s = min(seconds("-c", "import torch") for _ in range(3))
    assert min(seconds("-m", "ebt_policy.train", "--help") for _ in range(3)) < 2.0 * torch_s


def test_composition_resolves_references():
    assert compose_config("train", ["seed=3"])["run_dir"] == "runs/push_t/ebt-xs-seed3"
