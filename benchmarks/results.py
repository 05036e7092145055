"""Stored results: one JSON file for each experiment. Tables and figures are made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ebt_policy.io.atomic_write import atomic_write

RESULTS = Path("docs/results")


def store_json(name: str, result: Any, folder: Path = RESULTS) -> Path:
    """Write ``FOLDER/NAME.json`` atomically and return its path."""
    return store_text(f"{name}.json", json.dumps(result, indent=1) + "\n", folder)


def store_text(name: str, text: str, folder: Path = RESULTS) -> Path:
    """Write ``FOLDER/NAME`` atomically and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / name, text)
    return folder / name


def load_json(name: str) -> dict[str, Any]:
    """Return a stored result."""
    return json.loads((RESULTS / f"{name}.json").read_text())
