"""Stored results: one JSON file for each experiment. Tables and figures are made from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ebt_policy.io.atomic_write import atomic_write

RESULTS = Path("docs/results")
FOLDER_OPTIONS = "options.json"


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


def claim_folder(folder: Path, **options: Any) -> None:
    """Create a folder of trainings with its options, or check that it has these options.

    Args:
        folder: the folder; its file `FOLDER_OPTIONS` stores the options.
        options: the options that its trainings depend on, by the names that the user types.

    Raises:
        SystemExit: the folder has other options, or files but no stored options.
    """
    file = folder / FOLDER_OPTIONS
    if file.exists():
        stored = json.loads(file.read_text())
        if different := [name for name in options if options[name] != stored.get(name)]:
            have, want = (
                ", ".join(f"{name}={values.get(name)}" for name in different)
                for values in (stored, options)
            )
            sys.exit(f"error: folder={folder} has trainings with {have}, not {want}; give another.")
    elif folder.exists() and any(folder.iterdir()):
        sys.exit(
            f"error: folder={folder} has files but no {FOLDER_OPTIONS}, so the options of its "
            "trainings are unknown; give another."
        )
    else:
        store_json(file.stem, options, folder)
