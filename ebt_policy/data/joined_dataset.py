"""Several data sets as one: `open_datasets`.

Shapes: L rows of one episode.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from ebt_policy.data.dataset import Dataset, Feature, Role, open_dataset
from ebt_policy.data.zarr_store import EpisodeError

HUMAN = "human"  # column of recordings: whether a person determined the action


def open_datasets(sources: str | Sequence[str]) -> Dataset:
    """Open one or several data sets; several are joined to one, in this order.

    Args:
        sources: as for `open_dataset`.

    Raises:
        EpisodeError: as for `open_dataset`, or they cannot be joined (see `JoinedDataset`).
    """
    if isinstance(sources, str):
        return open_dataset(sources)
    with ExitStack() as stack:
        parts = [stack.enter_context(open_dataset(source)) for source in sources]
        joined = parts[0] if len(parts) == 1 else JoinedDataset(parts)
        stack.pop_all()  # The joined data set closes them.
        return joined


class JoinedDataset(Dataset):
    """The episodes of several data sets that share features.

    It has the features that all parts have with the same name, shape, entries and unit. Frames may
    have different sizes, because they are resized. If a part lacks the column ``human``, a person
    determined all its actions.

    Args:
        parts: open data sets. They are closed with this one.

    Raises:
        EpisodeError: a feature that policies use differs, no feature is common, or the rates
            differ.
    """

    format: ClassVar[str] = "joined"

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = list(parts)
        self.path = Path(", ".join(str(part.path) for part in parts))  # for messages
        self.lengths = np.concatenate([part.lengths for part in parts])
        self._first = np.cumsum([0, *(len(part) for part in parts)])  # first episode of each part
        rates = {part.fps for part in parts if part.fps is not None}
        if len(rates) > 1:
            raise EpisodeError(
                f"{self.path} have different rates ({', '.join(f'{r:g}' for r in sorted(rates))} "
                "rows per second); only data sets of the same rate can be joined."
            )
        self.fps = next(iter(rates), None)
        self.features = self._common_features()

    @property
    def paths(self) -> list[Path]:
        return [path for part in self.parts for path in part.paths]

    @classmethod
    def matches(cls, path: Path) -> bool:
        return False

    def read(self, episode: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        part, index = self._locate(episode)
        rows = part.read(index, [name for name in names if name in part.features])
        if HUMAN in names:
            flags = rows.get(HUMAN, np.ones(int(part.lengths[index]), bool))
            rows[HUMAN] = flags.reshape(-1).astype(bool)
        return rows

    def frames(self, episode: int, camera: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        part, index = self._locate(episode)
        return part.frames(index, camera, rows)

    def frame_batches(self, episode: int, camera: str) -> Iterator[np.ndarray]:
        part, index = self._locate(episode)
        return part.frame_batches(index, camera)

    def instruction(self, episode: int) -> str:
        part, index = self._locate(episode)
        return part.instruction(index)

    def subsets(self) -> dict[str, list[int]]:
        """Return the episodes of each declared subset; subsets of the same name are joined."""
        joined: dict[str, list[int]] = {}
        for part, first in zip(self.parts, self._first, strict=False):
            for name, episodes in part.subsets().items():
                joined.setdefault(name, []).extend(int(first) + i for i in episodes)
        return joined

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def _locate(self, episode: int) -> tuple[Dataset, int]:
        """Return the part of an episode, and its index there."""
        number = int(np.searchsorted(self._first, episode, side="right")) - 1
        return self.parts[number], episode - int(self._first[number])

    def _common_features(self) -> dict[str, Feature]:
        everywhere = set.intersection(*(set(part.features) for part in self.parts))
        some = set.union(*(set(part.features) for part in self.parts))
        features, left_out = {}, set()
        for name in sorted(everywhere):
            described = [part.features[name] for part in self.parts]
            if not self._is_joinable(described):
                left_out.add(name)
                continue
            dtype = np.result_type(*(np.dtype(feature.dtype) for feature in described))
            entries = next((feature.entries for feature in described if feature.entries), ())
            features[name] = replace(described[0], dtype=str(dtype), entries=entries)
        if not features:
            raise EpisodeError(
                f"{self.path} have no common feature; they have {', '.join(sorted(some))}."
            )
        left_out |= {
            name
            for part in self.parts
            for name, feature in part.features.items()
            if name not in everywhere and feature.role is not Role.OTHER
        }
        if left_out:
            warnings.warn(
                f"features that not all data sets have alike are not used: "
                f"{', '.join(sorted(left_out))}.",
                stacklevel=4,
            )
        if HUMAN in some:  # as a flag (L,), whatever its shape in the parts
            recording = next(part for part in self.parts if HUMAN in part.features)
            features[HUMAN] = replace(recording.features[HUMAN], dtype="bool", shape=())
        return features

    def _is_joinable(self, described: Sequence[Feature]) -> bool:
        """Return whether a feature has the same meaning in all parts.

        Raises:
            EpisodeError: it has not, although policies would use it.
        """
        first = described[0]
        if all(feature.role is Role.IMAGE for feature in described):
            return True  # Frames are resized.
        for attribute, meaning in (("shape", "shapes"), ("entries", "entries"), ("unit", "units")):
            values = [getattr(feature, attribute) for feature in described]
            known = [value for value in values if value or attribute == "shape"]
            if all(value == known[0] for value in known):
                continue
            if first.role is Role.OTHER:
                return False
            raise EpisodeError(
                f"{first.name} has different {meaning} in {self.path} "
                f"({'; '.join(map(str, known))}); they must be the same everywhere."
            )
        return True
