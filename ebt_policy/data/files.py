"""Files that a user names, or that lie in folders that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

MEND = "Mend or remove it; in training, task.skip_damaged=true leaves such files out."


def left_out(damaged: Sequence[str]) -> str:
    """For the line that says where data came from: what each file that cannot be used has."""
    return f", {len(damaged)} left out: {' '.join(damaged)}" if damaged else ""


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
            found = (f for f in path.rglob("*") if f.suffix.lower() in suffixes)
            files += sorted(f for f in found if not f.is_dir())
        elif path.is_file():
            files.append(path)
        else:
            raise error(f"there is no {what} at {path}; check task.path.")
    files = list({file.resolve(): file for file in files}.values())  # once each
    if not files:
        raise error(
            f"there is no {what} ({', '.join(suffixes)}) in {', '.join(paths)}; check task.path."
        )
    return files


def held_out_by_name(files: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Which part each file is for: "train", or, a tenth of them each, those of some names.

    Drawn by a file's name alone, so that what was learned from is not held out once others came or
    went. Of few files each part gets one at least, as long as there are any for it.
    """
    drawn = [crc32(file.name.encode()) for file in files]
    parts = [names[draw % 10] if draw % 10 < len(names) else "train" for draw in drawn]
    if len(files) <= len(names):
        return ["train"] * len(files)
    order = sorted(range(len(files)), key=drawn.__getitem__)
    for name in (*names, "train"):
        if name not in parts:
            parts[next(i for i in order if parts.count(parts[i]) > 1)] = name
    return parts
