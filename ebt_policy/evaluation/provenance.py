"""Date and code version of a result."""

from __future__ import annotations

import subprocess
from datetime import datetime
from functools import cache
from pathlib import Path

import ebt_policy


def provenance() -> dict[str, str | None]:
    """Return date (ISO 8601), version and commit; the commit is None outside a Git checkout."""
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"date": date, "version": ebt_policy.__version__, "commit": _commit()}


@cache
def _commit() -> str | None:
    """Return the commit of the package's checkout, with ``-dirty`` if it has local changes."""
    root = Path(ebt_policy.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
