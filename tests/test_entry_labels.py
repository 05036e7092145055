"""Labels of policies in the tables of the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.tables.entry_labels import entry_label, labelled

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("ebt_12500 (steps 2, candidates 8)", "energy, 2 steps, lowest energy of 8"),
        ("ebt (steps 1, candidates 1)", "energy, 1 step, one sample"),
        (
            "flow_matching (steps 2, candidates 8, select line_integral)",
            "flow matching, 2 steps, line integral of 8",
        ),
        ("flow_matching (steps 4)", "flow matching, 4 steps, one sample"),
        ("diffusion (ddim, steps 4, candidates 8, select density)", "DDIM-4, density vote of 8"),
        ("bc", "behaviour cloning"),
        (
            "whole (steps 2, candidates 8, level 0.9)",
            "default, 2 steps, lowest energy of 8, scored at level 0.9",
        ),
        ("flow matching, line integral", "flow matching, line integral"),
        ("another_run (steps 2)", "another_run (steps 2)"),
    ],
)
def test_entries_have_labels_in_words(name, label):
    assert entry_label(name) == label


def test_runs_of_a_table_have_labels_of_their_own():
    assert entry_label("ebt_12500 (steps 2, candidates 1)", {"ebt_12500": "energy before"}) == (
        "energy before, 2 steps, one sample"
    )


def test_every_policy_of_a_page_has_a_label():
    docs = ROOT / "docs"
    pages = [ROOT / "README.md", *docs.glob("*.md"), *(docs / "how_to").glob("*.md")]
    for page in pages:
        rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
        assert not [row for row in rows if re.search(r"\((dd[ip]m, )?steps \d", row)], page


def test_figures_have_the_labels_of_tables():
    result = {"entries": [{"name": "bc", "score": 1}], "paired": []}
    assert labelled(result) == {
        "entries": [{"name": "behaviour cloning", "score": 1}],
        "paired": [],
    }
    assert result["entries"][0]["name"] == "bc"
