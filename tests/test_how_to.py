"""The how-to pages work as written: their files, commands and Python code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "how_to"
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# Options with which a command finishes in seconds.
TRAIN = (
    "train.steps=2", "train.batch_size=4", "train.compile=false", "train.log_every=1", "device=cpu",
    "size=4xs", "evaluation.episodes=0", "task.demos=null",
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
    run(train, tmp_path, "run_dir=run", "train.minutes=null")
    evaluate = ["checkpoint=run" if a.startswith("checkpoint=runs") else a for a in evaluate]
    assert "reach" in run(evaluate, tmp_path) or (tmp_path / "results").is_dir()


@pytest.mark.slow
def test_add_policy_page_works(tmp_path):
    page = (PAGES / "add_policy.md").read_text()
    write_files(page, tmp_path)
    train, evaluate = commands(page)
    run(train, tmp_path, "run_dir=run", "train.minutes=null")
    evaluate = ["checkpoint=run" if a.startswith("checkpoint=runs") else a for a in evaluate]
    run(evaluate, tmp_path)


@pytest.mark.slow
def test_add_objective_page_works(tmp_path):
    page = (PAGES / "add_objective.md").read_text()
    write_files(page, tmp_path)
    (train,) = commands(page)
    run(train, tmp_path, "train.minutes=null")
    assert (tmp_path / "runs" / "robust" / "checkpoints").is_dir()


@pytest.mark.slow
def test_add_robot_page_works(tmp_path, tiny_run):
    page = (PAGES / "add_robot.md").read_text()
    write_files(page, tmp_path)
    for number, command in enumerate(commands(page)):
        command = [tiny_run.join(("checkpoint=", "")) if a == "checkpoint=RUN" else a
                   for a in command]  # fmt: skip
        run(command, tmp_path, f"output=out{number}", *TIMEOUTS)


def test_own_loop_page_works(tiny_run):
    page = (PAGES / "own_loop.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(block.replace("RUN", tiny_run), names)
    chunk, following = names["chunk"], names["next_chunk"]
    assert (following.actions[:, :5] == chunk.actions[:, 8:13]).all()  # type: ignore[attr-defined]


def test_own_data_page_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    page = (PAGES / "own_data.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(block, names)
    from ebt_policy.data.episode_store import read_episodes

    first, second = read_episodes("mine.zarr.zip"), read_episodes("mine.zarr")
    assert first.ends.tolist() == second.ends.tolist() == [30, 55]
    for key in ("obs", "action"):
        assert (first.arrays[key] == second.arrays[key]).all()


def test_commands_on_the_pages_exist():
    for path in PAGES.glob("*.md"):
        for script in re.findall(r"(?:^|[`\s])(ebt-[a-z]+)(?=[`\s])", path.read_text()):
            assert script in SCRIPTS, (path, script)
