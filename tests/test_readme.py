"""README, CHANGELOG and docs agree with the stored results, the code and the file tree."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from ebt_policy.energy import descent
from ebt_policy.errors import ConfigError
from ebt_policy.renamed_options import (
    RENAMED_OPTIONS,
    RENAMED_VALUES,
    check_renamed_argument,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def test_tables_match_the_stored_results(monkeypatch):
    monkeypatch.chdir(ROOT)
    from benchmarks.render_tables import TABLES, render

    for document, tables in TABLES.items():
        text = Path(document).read_text()
        assert render(text, tables) == text, "run make results"


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_links_resolve(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_readme_is_short():
    assert len(README.splitlines()) <= 160


def test_make_targets_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    used = set(re.findall(r"make ([\w-]+)", README))
    assert used and used <= set(targets)


def test_file_tree_names_existing_files():
    tree = README.split("## What is where")[1].split("\n\n")[1]
    folders = [ROOT / name for name in re.findall(r"^    (\w+)/ ", tree, flags=re.MULTILINE)]
    files = re.findall(r"[\w/]+\.py", tree)
    assert folders and files
    for name in files:
        assert any(next(folder.rglob(name), None) for folder in folders), name


def test_mentioned_options_exist():
    page = (ROOT / "docs/how_to/train_and_compare.md").read_text()
    sizes = re.search(r"`size=` sets the network size: ([\w, ]+)\.", page)
    assert sizes is not None
    assert set(sizes[1].split(", ")) == {p.stem for p in (CONFIGS / "size").glob("*.yaml")}

    table = page.split("| `task=` | `model=` | `objective=` |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines()[2:]]
    rows[0][0] = rows[0][0].removesuffix(": push_t, lift, ...")
    assert [domain for domain, _, _ in rows] == ["robot tasks", "text", "image", "video"]
    models = {name for _, names, _ in rows for name in names.split(", ")}
    assert models == {p.stem for p in (CONFIGS / "model").glob("*.yaml")}
    for domain, _, names in rows:
        file = "policy.yaml" if domain == "robot tasks" else f"{domain}.yaml"
        objectives = {p.parent.name for p in (CONFIGS / "objective").glob(f"*/{file}")}
        assert set(names.split(", ")) == objectives


def test_changelog_and_errors_name_renamed_options():
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \|$", CHANGELOG, flags=re.MULTILINE)
    for (section, old), new in RENAMED_OPTIONS.items():
        prefix = f"{section}." if section else ""
        assert (f"{prefix}{old}", f"{prefix}{new}") in rows
        with pytest.raises(ConfigError, match=re.escape(f"use {prefix}{new}=1")):
            check_renamed_argument(f"{prefix}{old}=1")
    for (section, option, old), new in RENAMED_VALUES.items():
        name = f"{section}.{option}" if section else option
        assert (f"{name}={old}", f"{name}={new}") in rows


def test_the_architecture_page_quotes_the_example_of_the_descent():
    quoted = ARCHITECTURE.split("<!-- descent:begin -->")[1].split("<!-- descent:end -->")[0]
    example = quoted.strip().removeprefix("```python\n").removesuffix("\n```")
    assert descent.__doc__ is not None
    assert f"\n\n{example}\n\n" in descent.__doc__

    test = doctest.DocTestParser().get_doctest(example, {}, "docs/architecture.md", None, 0)
    results = doctest.DocTestRunner().run(test)
    assert results.failed == 0 and results.attempted > 5


def test_registries_of_the_architecture_page_exist():
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|.* \| `([\w.]+)`", ARCHITECTURE, flags=re.MULTILINE)
    names = {name for cell, _ in rows for name in re.findall(r"[A-Z_]+", cell)}
    created = re.compile(
        r"^([A-Z_]+): Registry\[.+\] = Registry\(\s*\"[\w.]+\", \"([\w.]+)\"", re.M
    )
    sources = [p for folder in ("ebt_policy", "real_robot") for p in (ROOT / folder).rglob("*.py")]
    groups = {
        name: group
        for source in sources
        if "Registry(" in (text := source.read_text())
        for name, group in created.findall(text)
    }
    assert names == set(groups)
    assert len(set(groups.values())) == len(groups), "two registries read the same plug-ins"
    for cell, group in rows:
        assert groups[re.findall(r"[A-Z_]+", cell)[0]] == group
