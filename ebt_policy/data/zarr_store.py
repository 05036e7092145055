"""Opening zarr stores, formats 2 and 3, in a folder or a zip, and reading arrays from them.

By zarr's specification a chunk that is not stored consists of fill values, which is how zarr itself
stores a chunk of zeros. Arrays of `ebt_policy.data.episodes` say in their attributes that all of
their chunks are stored: there an absent one was lost.
"""

from __future__ import annotations

import itertools
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from ebt_policy.errors import UserError
from ebt_policy.io.paths import below, dangles

ALL_CHUNKS = "all_chunks_stored"  # attribute of an array of which no chunk may be absent
_MOST_ABSENT = 1_000_000  # chunks; an array of more is nothing but a damaged shape
_GROUP = ("zarr.json", ".zgroup")  # the file that makes a folder a group, formats 3 and 2
_ARRAY = ("zarr.json", ".zarray")
_EPISODES = tuple(f"meta/episode_ends/{name}" for name in _ARRAY)


class EpisodeError(UserError, ValueError):
    """Episodes that are missing, malformed or damaged; the message names the path and the key."""


@dataclass(frozen=True)
class Store:
    """An open store.

    Attributes:
        path: for messages.
        root: group.
        files: relative to the root.
        dangling: the files that are links without a target.
    """

    path: Path
    root: zarr.Group
    files: frozenset[str]
    dangling: frozenset[str]

    def array_names(self, group: str) -> list[str]:
        """Names of the arrays in `group`, opened or not (a codec may be missing for one)."""
        self._check_links(group)
        prefix = f"{group}/"
        folders = {file.rpartition("/")[0] for file in self.files if file.endswith(_ARRAY)}
        folders |= self.dangling  # to be named by whoever reads them
        names = {folder.removeprefix(prefix) for folder in folders if folder.startswith(prefix)}
        return sorted(name for name in names if "/" not in name)

    def array(self, key: str) -> zarr.Array:
        """Open the array `key`; EpisodeError if it is missing or its metadata damaged."""
        self._check_links(key, include_children=True)
        try:
            array = self.root.get(key)
        except Exception as error:  # those of zarr and its codecs share no base
            raise self._damaged(key, error) from error
        if not isinstance(array, zarr.Array) or array.ndim == 0:
            raise EpisodeError(f"{self.path}: the array {key} is missing: no store of episodes.")
        return array

    def read(self, key: str, rows: int | None = None) -> np.ndarray:
        """First `rows` rows of `key` (default: all), absent chunks as fill values with a warning.

        Raises:
            EpisodeError: it is missing or damaged, or a chunk is absent that was stored once.
        """
        array = self.array(key)
        rows = array.shape[0] if rows is None else rows
        if array.shape[0] < rows:
            raise EpisodeError(
                f"{self.path}: {key} has shape {array.shape}, but the episodes end at row {rows}."
            )
        shape, sizes = (rows, *array.shape[1:]), array.shards or array.chunks
        counts = [-(-n // size) for n, size in zip(shape, sizes, strict=True)]
        if math.prod(counts) > len(self.files) + _MOST_ABSENT:
            raise self._damaged(key, f"of {math.prod(counts):,} chunks nearly all are missing")
        chunks = map(array.metadata.encode_chunk_key, itertools.product(*map(range, counts)))
        absent = [chunk for chunk in chunks if f"{key}/{chunk}" not in self.files]
        if absent and array.attrs.get(ALL_CHUNKS):
            raise self._damaged(key, f"chunk {absent[0]} is missing")
        if absent:
            warnings.warn(
                f"{self.path}: {len(absent)} of {math.prod(counts)} chunks of {key} are not stored "
                f"and read as {array.fill_value}, which zarr means by that; if the store was "
                "copied, check that the copy is complete.",
                stacklevel=3,
            )
        try:
            return np.asarray(array[:rows])
        except Exception as error:
            raise self._damaged(key, error) from error

    def _check_links(self, key: str, *, include_children: bool = False) -> None:
        """Refuse a link that leads nowhere on the way to a key, and optionally below it."""
        for link in sorted(self.dangling):
            if f"{key}/".startswith(f"{link}/") or (
                include_children and link.startswith(f"{key}/")
            ):
                raise EpisodeError(
                    f"{self.path}: {link} is a link to {(self.path / link).readlink()}, which is "
                    "not there: mount or fetch what it leads to."
                )

    def _damaged(self, key: str, cause: object) -> EpisodeError:
        return EpisodeError(
            f"{self.path}: {key} is damaged or incomplete ({cause}): restore it or write it again."
        )


@contextmanager
def open_store(path: Path) -> Iterator[Store]:
    """Open the folder or zip `path` for reading; EpisodeError if there is no zarr store in it."""
    if not path.exists():
        raise EpisodeError(f"{path} does not exist: give the folder or zip of an episode store.")
    if path.is_dir():
        paths = {file.relative_to(path).as_posix(): file for file in below(path)}
        files, dangling = list(paths), [name for name, file in paths.items() if dangles(file)]
        root_in_zip = ""
        if not set(_GROUP) & set(files):
            raise EpisodeError(f"{path} is not a zarr store: it has no zarr.json and no .zgroup.")
        store = LocalStore(path, read_only=True)
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception as error:
            raise EpisodeError(
                f"{path} is not a zarr store, or was cut short: it cannot be opened as a zip "
                f"({error})."
            ) from error
        root_in_zip = _root_in_zip(path, names)
        files = [name.removeprefix(root_in_zip) for name in names if name.startswith(root_in_zip)]
        dangling = []
        store = ZipStore(path, mode="r")
    try:
        try:
            # Consolidated metadata is a copy, which an append by another tool may leave behind.
            root = zarr.open_group(store, path=root_in_zip, mode="r", use_consolidated=False)
        except Exception as error:
            raise EpisodeError(f"{path} cannot be opened as a zarr store ({error}).") from error
        yield Store(path, root, frozenset(files), frozenset(dangling))
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
