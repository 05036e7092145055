"""Episodes on disk, in Diffusion Policy's zarr layout, read from and written to a folder or a zip.

    <store>/                      group attributes: rate, units, key roles
      data/<key>                  (N, ...) rows of all episodes, concatenated over time
      meta/episode_ends           (E,) exclusive end row of each episode

Zarr formats 2 and 3. N rows, E episodes.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numcodecs
import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore, ZipStore

from ebt_policy.data.episodes import Episodes, check_episodes
from ebt_policy.data.zarr_store import (
    ALL_CHUNKS,
    EpisodeError,
    Store,
    is_episode_store,
    open_store,
)
from ebt_policy.io.paths import below, dangles

_CHUNK_BYTES = 1 << 20


# Zarr leaves out chunks of nothing but zeros. Ours are all there, and say so, so that a chunk that
# is not there is a lost one.
_ALL_CHUNKS = {"array.write_empty_chunks": True}


def read_episodes(path: str | os.PathLike[str], keys: Sequence[str] | None = None) -> Episodes:
    """Read and check episodes, only the arrays `keys` of them (default: all).

    A zip may hold the store at its root or in a folder inside. Rows beyond the last committed
    episode, which an interrupted append leaves behind, are ignored with a warning.

    Raises:
        EpisodeError: anything missing, malformed or damaged, as one sentence.
    """
    path = Path(path)
    with open_store(path) as store:
        ends = _read_ends(store)
        present = store.array_names("data")
        for key in present if keys is None else keys:
            if key not in present:
                raise EpisodeError(
                    f'{path}: there is no key "{key}"; the keys are {", ".join(present) or "none"}.'
                )
        if not present:
            raise EpisodeError(f"{path}: there are no arrays in the group data.")
        committed = int(ends[-1])
        names = [f"data/{key}" for key in (present if keys is None else keys)]
        surplus = max((store.array(name).shape[0] - committed for name in names), default=0)
        if surplus > 0:
            warnings.warn(
                f"{path}: up to {surplus} rows beyond the last episode are ignored; an interrupted "
                "append leaves such rows.",
                stacklevel=2,
            )
        arrays = {name.removeprefix("data/"): store.read(name, committed) for name in names}
        check_episodes(arrays, ends, str(path))
        return Episodes(arrays, ends, dict(store.root.attrs))


def write_episodes(
    path: str | os.PathLike[str], episodes: Episodes, zarr_format: Literal[2, 3] = 3
) -> None:
    """Write `episodes` to a folder, or to one file when `path` ends in ".zip", and fsync it.

    All is written under a temporary name beside `path` and then renamed, so `path` is always
    absent, the old store or the new one, whole. Only an episode store, an empty folder or a file
    with a name in ".zip" is ever replaced; where `path` is a link, what it leads to is.

    Raises:
        EpisodeError: `path` exists and is something else, a bad key, attributes JSON cannot hold.
        OSError: the disk refused.
    """
    path = Path(os.path.realpath(path))
    zipped = path.suffix == ".zip"
    if path.is_dir():
        replaceable = not zipped and (is_episode_store(path) or not any(path.iterdir()))
    else:
        replaceable = zipped or not path.exists()
    if not replaceable:
        raise EpisodeError(f"{path} exists and is no episode store: choose another name.")
    for key in episodes.arrays:
        if not key or "/" in key or "\\" in key or key.startswith((".", "__")):
            raise EpisodeError(f'{path}: "{key}" cannot be a key: use a plain name.')
    try:
        json.dumps(episodes.attrs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EpisodeError(f"{path}: the attributes must be plain JSON values: {error}.") from error

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        store = ZipStore(temporary, mode="w") if zipped else LocalStore(temporary)
        try:
            _write(store, episodes, zarr_format)
        finally:
            store.close()
        _sync(temporary)
        if path.is_dir():  # a folder that is not empty cannot be renamed over: move it aside first
            aside = path.with_name(f".{path.name}.{os.getpid()}.old")
            _remove(aside)
            path.rename(aside)
            try:
                temporary.rename(path)
            except OSError:
                aside.rename(path)
                raise
            _remove(aside)
        else:
            temporary.replace(path)
        _sync_entry(path.parent)
    finally:
        _remove(temporary)


def append_episodes(path: str | os.PathLike[str], episodes: Episodes) -> None:
    """Add `episodes` to the folder store `path` (zarr format 2 or 3), which must have their keys.

    Rows are written and fsynced first, the episode ends last and by one rename: a kill at any
    moment leaves the committed episodes as they were. What a killed append left is cut off first.

    Raises:
        EpisodeError: a zip, a store that cannot be read, other keys, shapes or types.
    """
    path = Path(path)
    if path.is_file():
        raise EpisodeError(
            f"{path} is a zip, which cannot be appended to: append to a folder, then write a zip."
        )
    with open_store(path) as store:
        committed = int(_read_ends(store)[-1])
        stored = {name: store.array(f"data/{name}") for name in store.array_names("data")}
        _check_fit(path, stored, episodes.arrays, committed)
    with zarr.config.set(_ALL_CHUNKS):  # arrays take it over when they are opened
        for key, new in episodes.arrays.items():
            array = zarr.open_array(LocalStore(path), path=f"data/{key}", mode="r+")
            if array.shape[0] > committed:
                array.resize((committed, *array.shape[1:]))
            array.append(new.astype(array.dtype, copy=False), axis=0)
        _sync(path / "data")
        _commit_ends(path / "meta", committed + episodes.ends)
    if zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None:
        zarr.consolidate_metadata(path)  # else tools that read it would not see the new episodes


def _check_fit(
    path: Path, stored: dict[str, zarr.Array], arrays: dict[str, np.ndarray], committed: int
) -> None:
    if stored.keys() != arrays.keys():
        raise EpisodeError(
            f"{path} has the keys {sorted(stored)}, the new episodes {sorted(arrays)}: "
            "they must be the same."
        )
    for key, new in arrays.items():
        old = stored[key]
        if old.shape[1:] != new.shape[1:] or not np.can_cast(new.dtype, old.dtype, "same_kind"):
            raise EpisodeError(
                f'{path}: "{key}" holds rows of shape {old.shape[1:]} and type {old.dtype}, the '
                f"new ones have {new.shape[1:]} and {new.dtype}."
            )
        if old.shape[0] < committed:
            raise EpisodeError(
                f'{path}: "{key}" has {old.shape[0]} rows, but the episodes end at {committed}.'
            )


def _commit_ends(meta: Path, new: np.ndarray) -> None:
    """Extend meta/episode_ends so that readers see either the old ends or all of the new."""
    # Grown in a copy. Then its chunks come first, which the old shape hides, and its shape last.
    target, copy = meta / "episode_ends", meta / ".episode_ends.tmp"
    _remove(copy)
    shutil.copytree(target, copy)
    try:
        zarr.open_array(LocalStore(copy), mode="r+").append(new)
        _sync(copy)
        files = [p.relative_to(copy) for p in copy.rglob("*") if p.is_file()]
        for file in sorted(files, key=lambda p: p.name in ("zarr.json", ".zarray")):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).replace(target / file)
        _sync(target)
    finally:
        # zarr's threads may still write after an interruption; the next append removes the rest.
        shutil.rmtree(copy, ignore_errors=True)


def _write(store: LocalStore | ZipStore, episodes: Episodes, zarr_format: Literal[2, 3]) -> None:
    # Checksums let a flipped bit be seen.
    compressor = (
        numcodecs.Zstd(level=3, checksum=True)
        if zarr_format == 2
        else ZstdCodec(level=3, checksum=True)
    )
    with zarr.config.set(_ALL_CHUNKS):
        root = zarr.create_group(store, zarr_format=zarr_format, attributes=episodes.attrs)
        groups = {name: root.create_group(name) for name in ("data", "meta")}
        pairs = [("data", key, array) for key, array in episodes.arrays.items()]
        for group, key, array in [*pairs, ("meta", "episode_ends", episodes.ends)]:
            row_bytes = max(1, array.nbytes // len(array))
            rows = max(1, _CHUNK_BYTES // row_bytes)
            chunks = (rows, *(max(1, size) for size in array.shape[1:]))
            groups[group].create_array(
                key, data=array, chunks=chunks, compressors=compressor,
                attributes={ALL_CHUNKS: True},
            )  # fmt: skip


def _read_ends(store: Store) -> np.ndarray:
    ends = store.read("meta/episode_ends")
    check_episodes({}, ends, str(store.path))
    return ends


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Fsync a file, or a folder with all that is in it."""
    files = [f for f in below(path) if not dangles(f)] if path.is_dir() else [path]
    for name in files:
        with name.open("rb+") as file:
            os.fsync(file.fileno())
    if path.is_dir():
        for folder in {path, *(file.parent for file in files)}:
            _sync_entry(folder)


def _sync_entry(folder: Path) -> None:
    if os.name == "posix":  # other systems do not open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
