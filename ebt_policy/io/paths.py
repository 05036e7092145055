"""Files that a user names, or that lie in folders that a user names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

SKIP_HINT = "Mend or remove it; in training, task.skip_unreadable=true leaves such files out."
SHOWN = 5  # problems of a list that are told in full


def reason(error: BaseException) -> str:
    """Return what a library says of a failure as part of a sentence: one line, no full stop."""
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def listed(problems: Sequence[str]) -> str:
    """Return sentences as one text: the first few of them, and how many more there are."""
    more = len(problems) - SHOWN
    return " ".join([*problems[:SHOWN], *([f"And {more} more."] if more > 0 else [])])


def format_skipped(damaged: Sequence[str]) -> str:
    """Return what the line that says where data came from adds of files that cannot be used."""
    return f", {len(damaged)} left out: {listed(damaged)}" if damaged else ""


def dangles(path: Path) -> bool:
    """Return whether a path is a link to something that is not there."""
    return path.is_symlink() and not path.exists()


def below(folder: Path) -> Iterator[Path]:
    """Yield what is no folder below `folder`, at any depth, through links to folders, too.

    A link to a folder that it lies in is left out: it would lead around without end. A link to
    something that is not there is among what is yielded.
    """
    return _below(folder, ())


def _below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    info = folder.stat()
    here = (info.st_dev, info.st_ino)
    if here in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _below(path, (*above, here))
        else:
            yield path


def find_files(
    paths: Sequence[str], suffixes: Sequence[str], what: str, error: type[ValueError]
) -> list[Path]:
    """Return files as they are named, and those of folders, at any depth, that end as they should.

    Links that lead nowhere and may have been files or folders to look in are among them, so that
    reading names them.

    Args:
        what: is looked for, for messages.
        error: to be raised.

    Raises:
        ``error``: a path where nothing is, or none in the folders.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = (f for f in below(path) if f.suffix.lower() in (*suffixes, ""))
            files += sorted(f for f in found if dangles(f) or (f.suffix and f.is_file()))
        elif path.is_file():
            files.append(path)
        else:
            raise error(f"there is no {what} at {path}; check task.path.")
    files = list({os.path.realpath(file): file for file in files}.values())  # once each
    if not files:
        raise error(
            f"there is no {what} ({', '.join(suffixes)}) in {', '.join(paths)}; check task.path."
        )
    return files


def held_out_by_name(files: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Return which part each file is for: "train", or, a tenth of them each, those of some names.

    Drawn by a file's name alone, so that what was learned from is not held out once others came or
    went. Of few files each part gets one at least, as long as there are any for it.
    """
    drawn = [crc32(os.fsencode(file.name)) for file in files]
    parts = [names[draw % 10] if draw % 10 < len(names) else "train" for draw in drawn]
    if len(files) <= len(names):
        return ["train"] * len(files)
    order = sorted(range(len(files)), key=drawn.__getitem__)
    for name in (*names, "train"):
        if name not in parts:
            parts[next(i for i in order if parts.count(parts[i]) > 1)] = name
    return parts
