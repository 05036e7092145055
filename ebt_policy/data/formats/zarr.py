"""Episode stores (see `ebt_policy.data.episode_store`), also recordings of the control loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.data.dataset import (
    DATASETS,
    Dataset,
    Feature,
    as_frames,
    check_names,
    checked_rate,
    entry_names,
    guess_role,
)
from ebt_policy.data.episodes import check_episodes
from ebt_policy.data.zarr_store import EpisodeError, is_episode_store, open_store


@DATASETS.register("zarr")
class ZarrDataset(Dataset):
    """An episode store in zarr format 2 or 3, a folder or a zip."""

    format = "zarr"

    @classmethod
    def matches(cls, path: Path) -> bool:
        is_group = any((path / name).is_file() for name in ("zarr.json", ".zgroup"))
        return is_episode_store(path) or is_group or (path.is_file() and path.suffix == ".zip")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._context = open_store(path)
        self._store = self._context.__enter__()
        try:
            ends = self._store.read("meta/episode_ends")
            check_episodes({}, ends, str(path))
            self._ends = ends.astype(np.int64)
            self.lengths = np.diff(self._ends, prepend=0)
            attrs: dict[str, Any] = dict(self._store.root.attrs)
            rate = attrs.get("rate_hz")
            self.fps = None if rate is None else checked_rate(rate, str(path))
            features = [self._feature(name, attrs) for name in self._store.array_names("data")]
            self.features = {feature.name: feature for feature in features if feature is not None}
            if not self.features:
                raise EpisodeError(f"{path} has no arrays of numbers in the group data.")
        except BaseException:
            self.close()
            raise

    def _feature(self, name: str, attrs: dict[str, Any]) -> Feature | None:
        """Return the description of an array; None if it has no numbers."""
        array = self._store.array(f"data/{name}")
        if array.dtype.kind not in "biuf":
            return None
        if array.shape[0] < self._ends[-1]:
            raise EpisodeError(
                f"{self.path}: data/{name} has {array.shape[0]} rows, but the episodes end at row "
                f"{self._ends[-1]}."
            )
        shape, dtype = tuple(array.shape[1:]), str(array.dtype)
        units: Any = attrs.get("units")
        entries = entry_names(attrs.get("names"), name)
        if name in ("action", "position"):  # older recordings have only names of actions
            entries = entries or entry_names({name: attrs.get("action_names")}, name)
        unit = str(units.get(name, "")) if isinstance(units, dict) else ""
        return Feature(name, dtype, shape, guess_role(name, dtype, shape), entries, unit)

    def read(self, episode: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        check_names(self, names)
        stop = int(self._ends[episode])
        start = stop - int(self.lengths[episode])
        return {name: self._store.read(f"data/{name}", stop, start) for name in names}

    def frames(self, episode: int, camera: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        check_names(self, [camera])
        rows = np.asarray(rows)
        start = int(self._ends[episode] - self.lengths[episode])
        first, stop = start + int(rows[0]), start + int(rows[-1]) + 1
        part = self._store.read(f"data/{camera}", stop, first)
        return as_frames(part[rows - rows[0]], camera)

    def instruction(self, episode: int) -> str:
        instructions: Any = self._store.root.attrs.get("instructions")
        is_complete = isinstance(instructions, list) and len(instructions) == len(self)
        return str(instructions[episode]) if is_complete else ""

    def close(self) -> None:
        self._context.__exit__(None, None, None)
