"""The README says what the stored results and the tree say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_stored_results(monkeypatch):
    monkeypatch.chdir(ROOT)
    from benchmarks.render_tables import TABLES, render

    for document, tables in TABLES.items():
        text = Path(document).read_text()
        assert render(text, tables) == text, "run make results"


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_commands_of_make_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    used = set(re.findall(r"make ([\w-]+)", README))
    assert used and used <= set(targets)


def test_file_tree_names_real_files():
    tree = README.split("## What is where")[1].split("\n\n")[1]
    folders = [ROOT / name for name in re.findall(r"^    (\w+)/ ", tree, flags=re.MULTILINE)]
    files = re.findall(r"[\w/]+\.py", tree)
    assert folders and files
    for name in files:
        assert any(next(folder.rglob(name), None) for folder in folders), name


def test_options_that_it_names_exist():
    groups = {"model": "model", "objective": "objective", "size": "size"}
    for option, folder in groups.items():
        listed = re.search(rf"`{option}=` ([\w, ]+)\.", README)
        assert listed is not None
        names = {name.strip() for name in listed[1].split(",")}
        assert names == {p.stem for p in (ROOT / "configs" / folder).glob("*.yaml")}
