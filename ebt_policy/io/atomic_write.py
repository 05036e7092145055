"""Atomic writes: a file always has its old or its new content, even if the process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ebt_policy.errors import OutputError


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file atomically: text as UTF-8 with ``\\n`` line ends, or bytes.

    Raises:
        OutputError: if it cannot be written. An existing file is then unchanged.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file beside `path`, with its suffix; sync and rename it at the end.

    The temporary file is removed if the block raises an error.

    Raises:
        OutputError: if it cannot be written, also inside the block. An existing file is then
            unchanged.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
        )
        temporary = Path(name)
        os.fchmod(handle, 0o644)  # mkstemp creates private files, but results are shared
        os.close(handle)
        yield temporary
        sync_to_disk(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"{target} cannot be written ({error.strerror or error}); check its folder and "
                "the free disk space."
            ) from error
        raise


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder ``.writing_NAME``; sync and rename it to ``target`` at the end.

    The temporary folder is removed if the block raises an error. An existing ``target`` stays.
    """
    temporary = target.with_name(f".writing_{target.name}")
    if temporary.exists():  # a killed program left it
        shutil.rmtree(temporary)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync_to_disk(file)
        sync_to_disk(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(temporary)
        return
    os.rename(temporary, target)
    sync_to_disk(target.parent)


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
