"""Opening zarr stores, formats 2 and 3, in a folder or a zip, and reading arrays that are whole."""

from __future__ import annotations

import itertools
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

_GROUP = ("zarr.json", ".zgroup")  # the file that makes a folder a group, formats 3 and 2
_ARRAY = ("zarr.json", ".zarray")
_EPISODES = tuple(f"meta/episode_ends/{name}" for name in _ARRAY)
# What zarr and its codecs raise on damaged metadata, chunks and archives.
_DAMAGE = (
    *(ValueError, TypeError, KeyError, RuntimeError, OSError, EOFError, AssertionError),
    *(zipfile.BadZipFile, zlib.error),
)


class EpisodeError(ValueError):
    """Episodes that are missing, malformed or damaged; the message names the path and the key."""


@dataclass(frozen=True)
class Store:
    """An open store: its path for messages, its root group, its files relative to the root."""

    path: Path
    root: zarr.Group
    files: frozenset[str]

    def array_names(self, group: str) -> list[str]:
        """Names of the arrays in `group`, opened or not (a codec may be missing for one)."""
        prefix = f"{group}/"
        folders = {file.rpartition("/")[0] for file in self.files if file.endswith(_ARRAY)}
        names = {folder.removeprefix(prefix) for folder in folders if folder.startswith(prefix)}
        return sorted(name for name in names if "/" not in name)

    def array(self, key: str) -> zarr.Array:
        """Open the array `key`; EpisodeError if it is missing or its metadata damaged."""
        try:
            array = self.root.get(key)
        except _DAMAGE as error:
            raise self._damaged(key, error) from error
        if not isinstance(array, zarr.Array) or array.ndim == 0:
            raise EpisodeError(f"{self.path}: the array {key} is missing: no store of episodes.")
        return array

    def read(self, key: str, rows: int | None = None) -> np.ndarray:
        """First `rows` rows of `key` (default: all); EpisodeError if any is missing or damaged."""
        array = self.array(key)
        rows = array.shape[0] if rows is None else rows
        if array.shape[0] < rows:
            raise EpisodeError(
                f"{self.path}: {key} has shape {array.shape}, but the episodes end at row {rows}."
            )
        # Zarr fills a chunk that is not there with the fill value, without a word: look for each.
        shape, sizes = (rows, *array.shape[1:]), array.shards or array.chunks
        counts = [-(-n // size) for n, size in zip(shape, sizes, strict=True)]
        if math.prod(counts) > len(self.files):
            raise self._damaged(key, "chunks are missing")
        for coordinates in itertools.product(*map(range, counts)):
            chunk = array.metadata.encode_chunk_key(coordinates)
            if f"{key}/{chunk}" not in self.files:
                raise self._damaged(key, f"chunk {chunk} is missing")
        try:
            return np.asarray(array[:rows])
        except _DAMAGE as error:
            raise self._damaged(key, error) from error

    def _damaged(self, key: str, why: object) -> EpisodeError:
        return EpisodeError(
            f"{self.path}: {key} is damaged or incomplete ({why}): restore it or write it again."
        )


@contextmanager
def open_store(path: Path) -> Iterator[Store]:
    """Open the folder or zip `path` for reading; EpisodeError if there is no zarr store in it."""
    if not path.exists():
        raise EpisodeError(f"{path} does not exist: give the folder or zip of an episode store.")
    if path.is_dir():
        files = [
            (Path(folder) / name).relative_to(path).as_posix()
            for folder, _, names in os.walk(path)
            for name in names
        ]
        inside = ""
        if not set(_GROUP) & set(files):
            raise EpisodeError(f"{path} is not a zarr store: it has no zarr.json and no .zgroup.")
        store = LocalStore(path, read_only=True)
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except _DAMAGE as error:
            raise EpisodeError(
                f"{path} is not a zarr store, or was cut short: it cannot be opened as a zip "
                f"({error})."
            ) from error
        inside = _root_in_zip(path, names)
        files = [name.removeprefix(inside) for name in names if name.startswith(inside)]
        store = ZipStore(path, mode="r")
    try:
        try:
            # Consolidated metadata is a copy, which an append by another tool may leave behind.
            root = zarr.open_group(store, path=inside, mode="r", use_consolidated=False)
        except _DAMAGE as error:
            raise EpisodeError(f"{path} cannot be opened as a zarr store ({error}).") from error
        yield Store(path, root, frozenset(files))
    finally:
        store.close()


def is_episode_store(folder: Path) -> bool:
    """Whether `folder` is the root of an episode store, whole or not."""
    return any((folder / file).is_file() for file in _EPISODES)


def _root_in_zip(path: Path, names: list[str]) -> str:
    """Folder inside the zip that holds the store: "", or with a slash at its end."""
    for markers in (_EPISODES, _GROUP):
        roots = {
            name.removesuffix(marker)
            for name in names
            for marker in markers
            if f"/{name}".endswith(f"/{marker}") and "__MACOSX" not in name
        }
        depth = min((root.count("/") for root in roots), default=0)
        top = sorted(root for root in roots if root.count("/") == depth)
        if len(top) > 1:
            raise EpisodeError(
                f"{path} holds several stores ({', '.join(top)}): unzip it and give one's folder."
            )
        if top:
            return top[0]
    raise EpisodeError(f"{path} is not a zarr store: there is no zarr.json and no .zgroup in it.")
