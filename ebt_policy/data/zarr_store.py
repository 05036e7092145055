"""Opening zarr stores, formats 2 and 3, in a folder or a zip, and reading their arrays.

In zarr, a missing chunk means fill values, and zarr does not store chunks of zeros. Arrays of
`ebt_policy.data.episode_store` have an attribute that all chunks are stored, so that a missing
chunk is known to be lost.
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

ALL_CHUNKS = "all_chunks_stored"  # attribute of an array without missing chunks
_MOST_ABSENT = 1_000_000  # missing chunks; more of them mean a damaged shape
_GROUP = ("zarr.json", ".zgroup")  # file that makes a folder a group, in formats 3 and 2
_ARRAY = ("zarr.json", ".zarray")
_EPISODES = tuple(f"meta/episode_ends/{name}" for name in _ARRAY)


class EpisodeError(UserError, ValueError):
    """Error for missing, malformed or damaged episodes; its message names the path and the key."""


@dataclass(frozen=True)
class Store:
    """An open store.

    Attributes:
        path: folder or zip, for messages.
        root: root group.
        files: paths of all files, relative to the root.
        dangling: the files that are links without a target.
    """

    path: Path
    root: zarr.Group
    files: frozenset[str]
    dangling: frozenset[str]

    def array_names(self, group: str) -> list[str]:
        """Return the names of the arrays in `group`, including arrays that cannot be opened."""
        self._check_links(group)
        prefix = f"{group}/"
        folders = {file.rpartition("/")[0] for file in self.files if file.endswith(_ARRAY)}
        folders |= self.dangling  # reading them raises an error
        names = {folder.removeprefix(prefix) for folder in folders if folder.startswith(prefix)}
        return sorted(name for name in names if "/" not in name)

    def array(self, key: str) -> zarr.Array:
        """Open the array `key`; EpisodeError if it is missing or its metadata is damaged."""
        self._check_links(key, include_children=True)
        try:
            array = self.root.get(key)
        except Exception as error:  # errors of zarr and its codecs share no base class
            raise self._damaged(key, error) from error
        if not isinstance(array, zarr.Array) or array.ndim == 0:
            raise EpisodeError(f"{self.path} is not an episode store: the array {key} is missing.")
        return array

    def read(self, key: str, rows: int | None = None, first: int = 0) -> np.ndarray:
        """Return rows of the array `key`; missing chunks are fill values, with a warning.

        Args:
            key: path of the array in the store.
            rows: exclusive end of the rows; None for all.
            first: first row.

        Raises:
            EpisodeError: the array is missing or damaged, or a stored chunk was lost.
        """
        array = self.array(key)
        rows = array.shape[0] if rows is None else rows
        if array.shape[0] < rows:
            raise EpisodeError(
                f"{self.path}: {key} has shape {array.shape}, but the episodes end at row {rows}."
            )
        shape, sizes = (rows, *array.shape[1:]), array.shards or array.chunks
        starts = [first // sizes[0], *(0 for _ in shape[1:])]
        ends = [-(-n // size) for n, size in zip(shape, sizes, strict=True)]
        counts = [end - start for start, end in zip(starts, ends, strict=True)]
        if math.prod(counts) > len(self.files) + _MOST_ABSENT:
            raise self._damaged(key, f"nearly all of {math.prod(counts):,} chunks are missing")
        chunks = map(array.metadata.encode_chunk_key, itertools.product(*map(range, starts, ends)))
        absent = [chunk for chunk in chunks if f"{key}/{chunk}" not in self.files]
        if absent and array.attrs.get(ALL_CHUNKS):
            raise self._damaged(key, f"chunk {absent[0]} is missing")
        if absent:
            warnings.warn(
                f"{self.path}: {len(absent)} of {math.prod(counts)} chunks of {key} are not stored "
                f"and are read as {array.fill_value}, as zarr defines; if the store was copied, "
                "check that the copy is complete.",
                stacklevel=3,
            )
        try:
            return np.asarray(array[first:rows])
        except Exception as error:
            raise self._damaged(key, error) from error

    def _check_links(self, key: str, *, include_children: bool = False) -> None:
        """Raise EpisodeError for a dangling link at or above a key, and optionally below it."""
        for link in sorted(self.dangling):
            if f"{key}/".startswith(f"{link}/") or (
                include_children and link.startswith(f"{key}/")
            ):
                raise EpisodeError(
                    f"{self.path}: {link} is a link to {(self.path / link).readlink()}, which does "
                    "not exist; mount or fetch its target."
                )

    def _damaged(self, key: str, cause: object) -> EpisodeError:
        return EpisodeError(
            f"{self.path}: {key} is damaged or incomplete ({cause}); restore it or write it again."
        )


@contextmanager
def open_store(path: Path) -> Iterator[Store]:
    """Open the folder or zip `path` for reading; EpisodeError if it has no zarr store."""
    if not path.exists():
        raise EpisodeError(f"{path} does not exist; pass the folder or zip of an episode store.")
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
                f"{path} is not a zarr store or is truncated: it cannot be opened as a zip "
                f"({error})."
            ) from error
        root_in_zip = _root_in_zip(path, names)
        files = [name.removeprefix(root_in_zip) for name in names if name.startswith(root_in_zip)]
        dangling = []
        store = ZipStore(path, mode="r")
    try:
        try:
            # Consolidated metadata is a copy, which an append by another tool may not update.
            root = zarr.open_group(store, path=root_in_zip, mode="r", use_consolidated=False)
        except Exception as error:
            raise EpisodeError(f"{path} cannot be opened as a zarr store ({error}).") from error
        yield Store(path, root, frozenset(files), frozenset(dangling))
    finally:
        store.close()


def is_episode_store(folder: Path) -> bool:
    """Return whether `folder` is the root of an episode store, complete or not."""
    return any((folder / file).is_file() for file in _EPISODES)


def _root_in_zip(path: Path, names: list[str]) -> str:
    """Return the folder of the store inside the zip: "", or a path that ends with a slash."""
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
                f"{path} contains several stores ({', '.join(top)}); unzip it and pass one folder."
            )
        if top:
            return top[0]
    raise EpisodeError(f"{path} is not a zarr store: it has no zarr.json and no .zgroup.")
