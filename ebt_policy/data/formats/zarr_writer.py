"""Writer of episode stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ebt_policy.data.dataset import Feature, Role
from ebt_policy.data.episode_store import append_episodes, write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.formats.writer import DatasetWriter, Frames

WRITE_BYTES = 1 << 28  # size of the episodes that are written at once


class ZarrWriter(DatasetWriter):
    """Writer of an episode store, a folder."""

    is_folder = True

    def __init__(self, path: Path, features: Sequence[Feature], fps: float | None) -> None:
        self._store = path
        units = {feature.name: feature.unit for feature in features if feature.unit}
        names = {feature.name: list(feature.entries) for feature in features if feature.entries}
        self._attrs: dict[str, Any] = {
            **({} if fps is None else {"rate_hz": fps}),
            **({"units": units} if units else {}),
            **({"names": names} if names else {}),
        }
        self._instructions: list[str] = []
        self._pending: list[dict[str, np.ndarray]] = []  # episodes that are not written yet
        self._pending_bytes = 0
        self._is_new = True

    @classmethod
    def name_of(cls, base: str, role: Role) -> str:
        return base

    def add(
        self, rows: Mapping[str, np.ndarray], frames: Mapping[str, Frames], instruction: str
    ) -> None:
        arrays = dict(rows) | {k: np.concatenate(list(v)) for k, v in frames.items()}
        self._pending.append(arrays)
        self._pending_bytes += sum(values.nbytes for values in arrays.values())
        self._instructions.append(instruction)
        if self._pending_bytes > WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        """Write the pending episodes."""
        if not self._pending:
            return
        arrays = {k: np.concatenate([rows[k] for rows in self._pending]) for k in self._pending[0]}
        ends = np.cumsum([len(next(iter(rows.values()))) for rows in self._pending])
        (write_episodes if self._is_new else append_episodes)(
            self._store, Episodes(arrays, ends, self._attrs)
        )
        self._pending, self._pending_bytes, self._is_new = [], 0, False

    def close(self) -> None:
        return

    def finish(self) -> None:
        self._write()
        if any(self._instructions):
            zarr.open_group(self._store, mode="r+").attrs["instructions"] = self._instructions
