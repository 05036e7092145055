"""Reading and writing episodes in Diffusion Policy's zarr layout, in a folder or a zip.

    <store>/                      group attributes: rate, units, key roles
      data/<key>                  (N, ...) rows of all episodes, concatenated over time
      meta/episode_ends           (E,) exclusive end row of each episode

Zarr formats 2 and 3 are supported. Shapes: N rows, E episodes.
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


# By default zarr does not store chunks of zeros. We store all chunks and mark the arrays, so that a
# missing chunk is known to be lost.
_ALL_CHUNKS = {"array.write_empty_chunks": True}


def read_episodes(path: str | os.PathLike[str], keys: Sequence[str] | None = None) -> Episodes:
    """Read and check episodes.

    A zip may contain the store at its root or in a folder. Rows after the last committed episode,
    which an interrupted append leaves behind, are ignored with a warning.

    Args:
        path: folder or zip of the store.
        keys: arrays to read; None for all.

    Raises:
        EpisodeError: the store is missing, malformed or damaged.
    """
    path = Path(path)
    with open_store(path) as store:
        ends = _read_ends(store)
        present = store.array_names("data")
        for key in present if keys is None else keys:
            if key not in present:
                raise EpisodeError(
                    f'{path} has no key "{key}"; the keys are {", ".join(present) or "none"}.'
                )
        if not present:
            raise EpisodeError(f"{path} has no arrays in the group data.")
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
    """Write episodes to a folder, or to one file if `path` ends in ".zip", and fsync it.

    The store is written under a temporary name beside `path` and then renamed. So `path` is always
    absent, the complete old store or the complete new one. Only an episode store, an empty folder
    or a ".zip" file is replaced. If `path` is a link, its target is replaced.

    Raises:
        EpisodeError: `path` is something else, a key is not a plain name, or the attributes are not
            JSON.
        OSError: the store cannot be written.
    """
    path = Path(os.path.realpath(path))
    zipped = path.suffix == ".zip"
    if path.is_dir():
        replaceable = not zipped and (is_episode_store(path) or not any(path.iterdir()))
    else:
        replaceable = zipped or not path.exists()
    if not replaceable:
        raise EpisodeError(f"{path} exists and is not an episode store; choose another name.")
    for key in episodes.arrays:
        if not key or "/" in key or "\\" in key or key.startswith((".", "__")):
            raise EpisodeError(f'{path}: "{key}" cannot be a key; use a plain name.')
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
        if path.is_dir():  # a rename cannot replace a non-empty folder, so move it first
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
    """Append episodes to the store in the folder `path` (zarr format 2 or 3), with the same keys.

    Rows are written and fsynced first, and the episode ends last. So an interruption at any moment
    leaves the committed episodes unchanged. Rows of an earlier interrupted append are removed
    first.

    Raises:
        EpisodeError: `path` is a zip or cannot be read, or keys, shapes or types differ.
    """
    path = Path(path)
    if path.is_file():
        raise EpisodeError(
            f"{path} is a zip, which cannot be extended; append to a folder, then write a zip."
        )
    with open_store(path) as store:
        committed = int(_read_ends(store)[-1])
        stored = {name: store.array(f"data/{name}") for name in store.array_names("data")}
        _check_fit(path, stored, episodes.arrays, committed)
    with zarr.config.set(_ALL_CHUNKS):  # arrays read this setting when they are opened
        for key, new in episodes.arrays.items():
            array = zarr.open_array(LocalStore(path), path=f"data/{key}", mode="r+")
            if array.shape[0] > committed:
                array.resize((committed, *array.shape[1:]))
            array.append(new.astype(array.dtype, copy=False), axis=0)
        _sync(path / "data")
        _commit_ends(path / "meta", committed + episodes.ends)
    if zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None:
        zarr.consolidate_metadata(path)  # some tools read only this copy


def _check_fit(
    path: Path, stored: dict[str, zarr.Array], arrays: dict[str, np.ndarray], committed: int
) -> None:
    if stored.keys() != arrays.keys():
        raise EpisodeError(
            f"{path} has the keys {sorted(stored)}, but the new episodes have {sorted(arrays)}; "
            "both must be equal."
        )
    for key, new in arrays.items():
        old = stored[key]
        if old.shape[1:] != new.shape[1:] or not np.can_cast(new.dtype, old.dtype, "same_kind"):
            raise EpisodeError(
                f'{path}: "{key}" has rows of shape {old.shape[1:]} and type {old.dtype}, but the '
                f"new rows have {new.shape[1:]} and {new.dtype}."
            )
        if old.shape[0] < committed:
            raise EpisodeError(
                f'{path}: "{key}" has {old.shape[0]} rows, but the episodes end at {committed}.'
            )


def _commit_ends(meta: Path, new: np.ndarray) -> None:
    """Extend meta/episode_ends so that readers see either the old or all of the new ends."""
    # Append to a copy, then move its files. The file with the shape is last, because readers ignore
    # new chunks beyond the old shape.
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
        # Threads of zarr may still write after an interruption. The next append removes the rest.
        shutil.rmtree(copy, ignore_errors=True)


def _write(store: LocalStore | ZipStore, episodes: Episodes, zarr_format: Literal[2, 3]) -> None:
    # Checksums detect flipped bits.
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
    """Fsync a file, or a folder with all its content."""
    files = [f for f in below(path) if not dangles(f)] if path.is_dir() else [path]
    for name in files:
        with name.open("rb+") as file:
            os.fsync(file.fileno())
    if path.is_dir():
        for folder in {path, *(file.parent for file in files)}:
            _sync_entry(folder)


def _sync_entry(folder: Path) -> None:
    if os.name == "posix":  # other systems cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
