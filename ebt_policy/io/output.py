"""Output folders, which are checked before long work and used by one program at a time.

A folder that cannot be written, or a full disk, is reported at the start and not after hours.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from filelock import SoftFileLock as _SoftFileLock

from ebt_policy.errors import ConfigError

MIB = 1 << 20


def numbered(folder: Path) -> Iterator[Path]:
    """Yield a folder, then folders whose name has the suffix -2, -3, ..."""
    yield folder
    for i in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{i}")


@contextmanager
def output_folder(folder: Path, option: str, *, need_bytes: int = 16 * MIB) -> Iterator[None]:
    """Check and lock a folder for results while a program writes into it.

    Arguments as in `writable_folder`.

    Raises:
        ConfigError: as in `writable_folder`, or if another program is writing into the folder.
    """
    with (
        writable_folder(folder, option, need_bytes=need_bytes),
        exclusive(folder / ".lock", folder),
    ):
        yield


@contextmanager
def writable_folder(folder: Path, option: str, *, need_bytes: int = 16 * MIB) -> Iterator[None]:
    """Check that a folder can be written; create it if it is missing.

    Created folders that are still empty at the end are removed.

    Args:
        folder: folder for results.
        option: option that names the folder, for messages.
        need_bytes: least free disk space, in bytes.

    Raises:
        ConfigError: if the folder cannot be created or written, or its disk is too full.
    """
    created = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        _remove_empty(created)
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{option}={folder} cannot be written ({reason}); give another folder."
        ) from error
    try:
        check_free_space(folder, need_bytes, option)
        yield
    finally:
        _remove_empty(created)


@contextmanager
def output_store(store: Path, option: str) -> Iterator[None]:
    """Lock a file or folder, which may already exist, while a program writes it.

    The lock lies beside it, so that several stores in one folder can be written at the same time.

    Raises:
        ConfigError: if its folder cannot be written, or another program is writing the store.
    """
    with (
        writable_folder(store.parent, option),
        exclusive(store.with_name(f".{store.name}.lock"), store),
    ):
        yield


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, until one is not empty."""
    with suppress(OSError, ValueError):
        for folder in folders:
            folder.rmdir()


def check_free_space(folder: Path, need_bytes: int, option: str) -> None:
    """Raise a `ConfigError` if the disk of an existing folder has too little free space."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise ConfigError(
            f"{option}={folder} needs {-(-need_bytes // MIB):,} MiB of free disk space, but only "
            f"{free // MIB:,} MiB are free; free some space or give another folder."
        )


@contextmanager
def exclusive(lock_file: Path, resource: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the kernel releases if this process dies.

    Args:
        lock_file: file in an existing folder; contains the owner's process id and host while
            locked.
        resource: the locked file or folder, for the message.

    Raises:
        ConfigError: if another program holds the lock.
    """
    lock = FileLock(lock_file, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"{resource} is in use by {_owner(lock_file)}; wait for it, or use another path."
        ) from None
    try:
        # Without flock (some network file systems) filelock writes the same two lines itself.
        if not isinstance(lock, _SoftFileLock):
            lock_file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
        yield
    finally:
        # Before the release, because programs that wait for the lock check that the file exists.
        lock_file.unlink(missing_ok=True)
        lock.release()


def _owner(lock_file: Path) -> str:
    with suppress(OSError, ValueError):
        pid, host = lock_file.read_text().split()[:2]
        return f"process {pid} on {host}"
    return "another process"
