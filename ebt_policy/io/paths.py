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
    num_more = len(problems) - SHOWN
    return " ".join([*problems[:SHOWN], *([f"And {num_more} more."] if num_more > 0 else [])])


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


def _below(folder: Path, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    info = folder.stat()
    identity = (info.st_dev, info.st_ino)
    if identity in ancestors:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _below(path, (*ancestors, identity))
        else:
            yield path


def find_files(
    paths: Sequence[str], suffixes: Sequence[str], description: str, error: type[ValueError]
) -> list[Path]:
    """Return files as they are named, and those of folders, at any depth, that end as they should.

    Links that lead nowhere and may have been files or folders to look in are among them, so that
    reading names them.

    Args:
        description: of the files, for messages.
        error: the class of error to raise.

    Raises:
        ``error``: a path where nothing is, or none in the folders.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            candidates = (f for f in below(path) if f.suffix.lower() in (*suffixes, ""))
            files += sorted(f for f in candidates if dangles(f) or (f.suffix and f.is_file()))
        elif path.is_file():
            files.append(path)
        else:
            raise error(f"there is no {description} at {path}; check task.path.")
    files = list({os.path.realpath(file): file for file in files}.values())  # once each
    if not files:
        raise error(
            f"there is no {description} ({', '.join(suffixes)}) in {', '.join(paths)}; check "
            "task.path."
        )
    return files


def held_out_by_name(files: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Return the split of each file: "train", or one of `names`, with a tenth of the files each.

    Drawn by a file's name alone, so that what was learned from is not held out once others came or
    went. Of few files each split gets one at least, as long as there are any for it.
    """
    hashes = [crc32(os.fsencode(file.name)) for file in files]
    splits = [names[value % 10] if value % 10 < len(names) else "train" for value in hashes]
    if len(files) <= len(names):
        return ["train"] * len(files)
    order = sorted(range(len(files)), key=hashes.__getitem__)
    for name in (*names, "train"):
        if name not in splits:
            splits[next(i for i in order if splits.count(splits[i]) > 1)] = name
    return splits
