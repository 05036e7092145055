"""Files that a user names, directly or by a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

SKIP_HINT = "Repair or remove it; in training, task.skip_unreadable=true skips such files."
SHOWN = 5  # number of problems of a list that are shown in full


def reason(error: BaseException) -> str:
    """Return a library's error message as part of a sentence: one short line, no full stop."""
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def listed(problems: Sequence[str]) -> str:
    """Return the first sentences of a list as one text, and the number of the others."""
    num_more = len(problems) - SHOWN
    return " ".join([*problems[:SHOWN], *([f"And {num_more} more."] if num_more > 0 else [])])


def format_skipped(damaged: Sequence[str]) -> str:
    """Return the part of a line about data that lists skipped files; "" without any."""
    return f", {len(damaged)} skipped: {listed(damaged)}" if damaged else ""


def dangles(path: Path) -> bool:
    """Return whether a path is a broken symbolic link."""
    return path.is_symlink() and not path.exists()


def below(folder: Path) -> Iterator[Path]:
    """Yield all files in `folder`, at any depth, also through links to folders.

    A link to a folder that contains the link is skipped, because it would lead to an endless loop.
    Broken links are yielded, too.
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
    """Return the named files, and the files with certain suffixes in the named folders.

    Folders are searched at any depth. Broken links with such a suffix, or without any, are
    returned, too, so that reading them reports them.

    Args:
        paths: files and folders.
        suffixes: suffixes in lower case, such as ``.png``.
        description: kind of the files, for messages.
        error: class of the error to raise.

    Raises:
        ``error``: if a path does not exist, or no file is found.
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
    """Return the split of each file: "train", or one of `names` with about a tenth of the files.

    The split depends on the file's name, so a training file is not held out after other files are
    added or removed. Few files are an exception: an empty split gets a file of another split. If
    there are at most as many files as `names`, all are training files.
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
