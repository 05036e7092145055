"""The tutorial notebooks run from the first cell to the last."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
# Options with which training takes seconds.
QUICK = {
    "train.minutes=8 evaluation.episodes=20": (
        "train.steps=2 train.batch_size=4 train.compile=false size=4xs evaluation.episodes=1 "
        "evaluation.workers=1 task.demos=expert device=cpu"
    ),
    "max_episode_steps=300": "max_episode_steps=10",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path, monkeypatch):
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for text, quick in QUICK.items():
            cell.source = cell.source.replace(text, quick)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )  # fmt: skip
    client.execute()
    results = [cell for cell in notebook.cells if cell.get("outputs")]
    assert len(results) >= 5
    if path.stem == "push_t":
        assert (tmp_path / "runs" / "tutorial" / "evaluation" / "report.html").is_file()
        assert (tmp_path / "episode.gif").stat().st_size > 1000


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
