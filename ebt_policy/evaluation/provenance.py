"""When and by which version of the code a result was made."""

from __future__ import annotations

import subprocess
from datetime import datetime
from functools import cache
from pathlib import Path

import ebt_policy


def provenance() -> dict[str, str | None]:
    """Return date (ISO 8601), version and commit; the commit of a Git checkout, else None."""
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"date": date, "version": ebt_policy.__version__, "commit": _commit()}


@cache
def _commit() -> str | None:
    """Return the commit of this package's checkout, with ``-dirty`` if it has changes."""
    root = Path(ebt_policy.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
