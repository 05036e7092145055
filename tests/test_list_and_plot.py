"""``ebt-list`` and ``ebt-plot``, and tables on a narrow terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from ebt_policy import list as list_entry
from ebt_policy import plot
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.terminal import print_markdown, table_lines


def printed(text: str, width: int) -> list[str]:
    file = io.StringIO()
    print_markdown(text, Console(file=file, width=width))
    return file.getvalue().splitlines()


TABLE = """| policy | score | success |
| :-- | --: | --: |
| a long name (steps 2) | 0.9 [0.8, 1.0] | 0.5 |
| a long name (steps 4) | 1.0 [0.9, 1.0] | 0.75 |

One sentence.
"""


def test_a_table_that_fits_has_aligned_columns():
    lines = printed(TABLE, 80)
    assert lines[:3] == [
        "policy                          score  success",
        "a long name (steps 2)  0.9 [0.8, 1.0]      0.5",
        "a long name (steps 4)  1.0 [0.9, 1.0]     0.75",
    ]
    assert "One sentence." in lines


def test_a_table_that_is_too_wide_keeps_names_whole():
    assert printed(TABLE, 30)[:4] == [
        "a long name (steps 2)",
        "  score 0.9 [0.8, 1.0]",
        "  success 0.5",
        "a long name (steps 4)",
    ]
    assert list(table_lines(["a", "b"], [["x" * 90, "1"]], 20)) == ["x" * 90, "  b 1"]


def test_pipes_in_names_are_kept():
    assert printed("| a | b |\n| :-- | --: |\n| x\\|y | 1 |\n", 80)[1].startswith("x|y")


def test_list_shows_options_and_runs(tiny_run, capsys):
    from pathlib import Path

    list_entry.list_everything(Path(tiny_run).parent, Console(width=100))
    text = capsys.readouterr().out
    for name in ("task=push_t", "model=ebt", "objective=flow", "robot=sim_push_t", "size=xs"):
        assert name in text
    assert "updates" in text and "not evaluated" in text


def test_the_result_of_a_run_is_read_from_its_evaluation(tmp_path):
    (tmp_path / "evaluation").mkdir()
    entry = {"name": "a", "score": {"mean": 0.98123, "ci95": [0.97, 0.99]}}
    (tmp_path / "evaluation" / "summary.json").write_text(json.dumps({"entries": [entry]}))
    assert list_entry.describe_result(tmp_path) == "score 0.981 [0.97, 0.99]"
    (tmp_path / "evaluation" / "summary.json").write_text("{")
    assert list_entry.describe_result(tmp_path) == "not evaluated"


@pytest.fixture
def runs(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [{"step": i, "loss": 1 / (i + 1)} for i in range(5)]
        (tmp_path / name / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plot_compares_runs(runs, suffix):
    output = runs / f"curves{suffix}"
    assert [run.name for run in plot.plot_runs([f"{runs}/?"], output)] == ["a", "b"]
    content = output.read_bytes()
    assert content.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")


@pytest.mark.parametrize(
    ("patterns", "output", "message"),
    [
        ([], "c.svg", "missing required argument RUN"),
        (["nowhere"], "c.svg", "nowhere does not exist"),
        (["."], "c.svg", r"\. has no log\.jsonl"),
        (["a"], "c.pdf", r"must end in \.svg or \.png"),
    ],
)
def test_invalid_plot_arguments_are_refused(patterns, output, message, runs, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(runs)
    with pytest.raises(ConfigError, match=message):
        plot.plot_runs(patterns, Path(output))
    assert not (runs / output).exists()
