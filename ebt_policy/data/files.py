"""Files that a user names, or that lie in folders that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def own_files(
    paths: Sequence[str], suffixes: Sequence[str], what: str, error: type[ValueError]
) -> list[Path]:
    """Files as they are named, and those of folders, at any depth, that end as they should.

    Args:
        what: is looked for, for messages.
        error: to be raised.

    Raises:
        ``error``: a path where nothing is, or none in the folders.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(f for f in path.rglob("*") if f.suffix.lower() in suffixes)
        elif path.is_file():
            files.append(path)
        else:
            raise error(f"there is no {what} at {path}; check task.path.")
    if not files:
        raise error(
            f"there is no {what} ({', '.join(suffixes)}) in {', '.join(paths)}; check task.path."
        )
    return files
