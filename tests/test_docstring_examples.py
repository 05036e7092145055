"""The examples in docstrings give the results that they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import ebt_policy

ROOT = Path(ebt_policy.__file__).parent
FOLDERS = (ROOT, *(path for path in ROOT.iterdir() if path.is_dir()))  # Some are links.
MODULES = sorted(
    {
        ".".join(("ebt_policy", *path.relative_to(ROOT).with_suffix("").parts))
        for folder in FOLDERS
        for path in folder.rglob("*.py")
        if ">>> " in path.read_text(encoding="utf-8")
    }
)


def test_examples_exist_in_several_packages():
    assert len({module.split(".")[1] for module in MODULES}) >= 6


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_a_module_run(module):
    failed, count = doctest.testmod(importlib.import_module(module))
    assert failed == 0 and count > 0
