"""Import results of another machine: ``python -m benchmarks.gpu.fetch from=FOLDER``.

Options: from (a folder with ``CARD/SECTION.json`` files, at any depth), output (docs/results/gpu).
Rehearsals are skipped. New cases are added to a stored section of the same version and card; a
section of another version is replaced.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.command_line import parse_options
from benchmarks.gpu.report import TABLES
from benchmarks.results import RESULTS
from ebt_policy.io.atomic_write import atomic_write

IDENTITY = ("version", "torch", "card")


def merged(stored: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Merge new results into a section's stored results; results of other versions are replaced."""
    if any(stored.get(key) != new[key] for key in IDENTITY):
        return new
    cases = {**stored["cases"], **new["cases"]}
    failed = {name: reason for name, reason in new["failed"].items() if name not in cases}
    return {**new, "cases": cases, "failed": failed}


def main() -> None:
    options = parse_options(**{"from": "", "output": str(RESULTS / "gpu")})
    source = Path(getattr(options, "from"))
    files = [file for file in sorted(source.rglob("*.json")) if file.stem in TABLES]
    if not getattr(options, "from") or not files:
        sys.exit(f"error: from={source} must be a folder that holds results of benchmarks.gpu.")
    for file in files:
        new = json.loads(file.read_text())
        if new["toy"]:
            continue
        target = Path(options.output) / file.parent.name / file.name
        stored = json.loads(target.read_text()) if target.exists() else {}
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, json.dumps(merged(stored, new), indent=1) + "\n")
        print(f"{target}: {len(new['cases'])} cases")


if __name__ == "__main__":
    main()
