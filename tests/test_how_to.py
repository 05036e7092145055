"""The how-to pages work as written: their files, commands and Python code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ebt_policy.data.dataset import open_dataset
from ebt_policy.data.feature_selection import select_features

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "how_to"
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# Options with which a command finishes in seconds.
TRAIN = (
    "train.steps=2", "train.minutes=null", "train.batch_size=4", "train.compile=false",
    "train.log_every=1", "device=cpu", "size=4xs", "evaluation.episodes=0",
)  # fmt: skip
QUICK = {"ebt-train": TRAIN, "ebt-eval": ("episodes=1", "videos=0"), "ebt-run": ("live=false",)}
TIMEOUTS = [f"robot.watch.{name}=60" for name in ("observation_s", "inference_s", "heartbeat_s")]


def write_files(page: str, folder: Path) -> None:
    """Write each block that follows a line with a file name into that file."""
    for name, block in re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```", page, re.M | re.S):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block)


def commands(page: str) -> list[list[str]]:
    """Return the indented commands of a page."""
    text = re.sub(r"\\\n\s+", "", page)
    lines = re.findall(r"^    ((?:ebt-|python )[^#\n]*)", text, flags=re.M)
    return [shlex.split(line) for line in lines]


def run(command: list[str], folder: Path, *options: str) -> str:
    script, *arguments = command
    start = ["-m", SCRIPTS[script].partition(":")[0]] if script in SCRIPTS else []
    program = [sys.executable, *start, *arguments, *QUICK.get(script, ()), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EBT_POLICY_DATA": ""}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr[-3000:])
    return done.stdout


def test_add_task_page_works(tmp_path):
    page = (PAGES / "add_task.md").read_text()
    write_files(page, tmp_path)
    (tmp_path / "demos").mkdir()
    record, train, evaluate = commands(page)
    run(record, tmp_path)
    # The environment cannot render, so the default number of videos must not stop the training.
    run(train, tmp_path, "run_dir=run", "evaluation.episodes=2", "evaluation.videos=3")
    report = (tmp_path / "run/evaluation/report.html").read_text()
    assert "does not declare the render mode rgb_array" in report
    evaluate = ["checkpoint=run" if a.startswith("checkpoint=runs") else a for a in evaluate]
    assert "reach" in run(evaluate, tmp_path) or (tmp_path / "results").is_dir()


@pytest.mark.slow
def test_add_policy_page_works(tmp_path):
    page = (PAGES / "add_policy.md").read_text()
    write_files(page, tmp_path)
    train, evaluate = commands(page)
    run(train, tmp_path, "run_dir=run")
    evaluate = ["checkpoint=run" if a.startswith("checkpoint=runs") else a for a in evaluate]
    run(evaluate, tmp_path)


@pytest.mark.slow
def test_add_objective_page_works(tmp_path):
    page = (PAGES / "add_objective.md").read_text()
    write_files(page, tmp_path)
    (train,) = commands(page)
    run(train, tmp_path)
    assert (tmp_path / "runs" / "robust" / "checkpoints").is_dir()


@pytest.mark.slow
@pytest.mark.vision
def test_add_robot_page_works(tmp_path):
    pytest.importorskip("timm")
    page = (PAGES / "add_robot.md").read_text()
    write_files(page, tmp_path)
    arm = subprocess.Popen([sys.executable, "sim_arm.py"], cwd=tmp_path)
    try:
        for number, command in enumerate(commands(page)):
            options: tuple[str, ...] = ()
            if command[0] == "ebt-run":
                # A policy of two updates asks for motions beyond the limits.
                clamps = "robot.watch.max_consecutive_clamped_ticks=1000"
                episodes = ("episodes=2", "robot.episode_s=3")
                options = (f"output=out{number}", *episodes, clamps, *TIMEOUTS)
            run(command, tmp_path, *options)
    finally:
        arm.kill()
        arm.wait()
    for number, is_human in ((0, True), (5, False)):
        summary = json.loads((tmp_path / f"out{number}/summary.json").read_text())
        assert summary["completed"] == 2, number
        name = "demos" if is_human else "corrections"
        with open_dataset(tmp_path / name) as dataset:
            assert len(dataset) == 2 and dataset.features["front"].shape == (96, 96, 3)
            assert dataset.read(1, ["human"])["human"].all() == is_human
    with open_dataset(tmp_path / "lerobot/my_arm") as dataset:
        assert dataset.format == "lerobot" and len(dataset) == 2


def test_own_loop_page_works(tiny_run):
    page = (PAGES / "own_loop.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(block.replace("RUN", tiny_run), names)
    chunk, following = names["chunk"], names["next_chunk"]
    assert (following.actions[:, :5] == chunk.actions[:, 8:13]).all()  # type: ignore[attr-defined]


def test_own_data_page_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = python_of("own_data.md")
    assert names["rows"]["obs"].shape == (30, 4)  # type: ignore[index]


@pytest.mark.robomimic
def test_scripts_of_the_file_formats_write_data_sets(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    python_of("../reference/formats.md")
    for path, kind, lengths in (
        ("mine.zarr", "zarr", [30, 25]),
        ("mine_lerobot", "lerobot", [40, 40, 40]),
        ("mine.hdf5", "robomimic", [40, 40, 40]),
    ):
        with open_dataset(path) as dataset:
            assert (dataset.format, dataset.lengths.tolist()) == (kind, lengths)
            selection = select_features(dataset)
            assert bool(selection.cameras) == (kind == "zarr")


def test_commands_on_the_pages_exist():
    for path in PAGES.glob("*.md"):
        for script in re.findall(r"(?:^|[`\s])(ebt-[a-z]+)(?=[`\s])", path.read_text()):
            assert script in SCRIPTS, (path, script)


def python_of(page: str, **replacements: str) -> dict[str, object]:
    """Execute the Python code of a page and return its names."""
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(), re.M | re.S):
        for placeholder, value in replacements.items():
            block = block.replace(placeholder, value)
        exec(block, names)
    return names


@pytest.mark.slow
def test_costs_page_works(tmp_path):
    names = python_of("costs.md")
    assert names["chunk"].cost.shape == (1,)  # type: ignore[attr-defined]
    (command,) = commands((PAGES / "costs.md").read_text())
    table = run(command, tmp_path, "output=out", *TIMEOUTS)
    assert "cost of a plan" in table


def test_compose_page_works(tmp_path, tiny_run):
    checkpoint = tiny_run
    names = python_of("compose_policies.md", RUN_A=checkpoint, RUN_B=checkpoint)
    assert names["both"].weights == [0.5, 0.5]  # type: ignore[attr-defined]
    composed, evaluate, weighted, mixed = commands((PAGES / "compose_policies.md").read_text())
    for number, command in enumerate((composed, weighted, mixed)):
        members = [
            f"checkpoint={checkpoint}" if a.startswith("checkpoint=") else a for a in command
        ]
        run(members, tmp_path, f"output=product{number}")
    run([evaluate[0], "checkpoint=product0", "checkpoint=product2"], tmp_path)
