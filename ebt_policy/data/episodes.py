"""Episodes in memory, and checks of their arrays (see `episode_store` for episodes on disk).

Shapes: N rows of all episodes, E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ebt_policy.data.zarr_store import (
    EpisodeError,
)
from ebt_policy.io.paths import listed


@dataclass(frozen=True)
class Episodes:
    """Episodes concatenated over time.

    Attributes:
        arrays: key -> (N, ...) numbers.
        ends: (E,) int64, exclusive end row of each episode; strictly increasing, ends[-1] == N.
        attrs: JSON values, e.g. {"rate_hz": 10, "units": {...}, "roles": {...}}.

    Raises:
        EpisodeError: see `check_episodes`.
    """

    arrays: dict[str, np.ndarray]
    ends: np.ndarray
    attrs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_episodes(self.arrays, self.ends, "Episodes")
        object.__setattr__(self, "ends", np.asarray(self.ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> np.ndarray:
        """(E,) number of rows of each episode."""
        return np.diff(self.ends, prepend=0)

    def episode(self, i: int) -> dict[str, np.ndarray]:
        """Return views key -> (length, ...) of episode `i`; a negative `i` counts from the end."""
        i = range(len(self))[i]
        stop = int(self.ends[i])
        start = stop - int(self.lengths[i])
        return {key: array[start:stop] for key, array in self.arrays.items()}

    def select(self, indices: Sequence[int] | np.ndarray) -> Episodes:
        """Return copies of the episodes `indices`, in this order."""
        chosen = [self.episode(int(i)) for i in indices]
        if not chosen:
            raise EpisodeError("no episodes are selected; pass at least one index.")
        arrays = {key: np.concatenate([e[key] for e in chosen]) for key in self.arrays}
        lengths = self.lengths[np.asarray(indices, dtype=np.int64)]
        return Episodes(arrays, np.cumsum(lengths), self.attrs)

    def __add__(self, other: Episodes) -> Episodes:
        """Concatenate these episodes and the `other` ones, which must have the same keys."""
        if set(self.arrays) != set(other.arrays):
            raise EpisodeError(
                f"Cannot join episodes with the keys {', '.join(sorted(self.arrays))} and "
                f"{', '.join(sorted(other.arrays))}."
            )
        arrays = {k: np.concatenate([a, other.arrays[k]]) for k, a in self.arrays.items()}
        return Episodes(arrays, np.append(self.ends, self.ends[-1] + other.ends), self.attrs)


def check_episodes(arrays: dict[str, np.ndarray], ends: np.ndarray, source: str) -> None:
    """Check arrays and episode ends (see `Episodes`).

    Args:
        arrays: key -> (N, ...).
        ends: (E,).
        source: name of the file in messages.

    Raises:
        EpisodeError: there are no episodes, or ends are not integers or not increasing. Also if an
            array is empty, not numeric or not of length ends[-1], or has values that are not finite
            in float32.
    """
    ends = np.asarray(ends)
    if ends.ndim != 1 or len(ends) == 0:
        raise EpisodeError(f"{source}: there are no episodes (episode_ends is empty).")
    if ends.dtype.kind not in "iu":
        raise EpisodeError(f"{source}: episode_ends must be integers, not {ends.dtype}.")
    if (ends <= 0).any() or (np.diff(ends.astype(np.int64)) <= 0).any():
        raise EpisodeError(
            f"{source}: episode_ends must be above 0 and strictly increasing (no empty episode)."
        )
    problems = [_problem(key, array, ends) for key, array in arrays.items()]
    if failures := [f"{problem}." for problem in problems if problem]:
        raise EpisodeError(f"{source}: {listed(failures)}")


def check_finite(values: np.ndarray, name: str, source: str, episode: int) -> None:
    """Check that the numbers (L, ...) of an episode are finite in float32.

    Args:
        name: name of the numbers.
        source: name of the file in messages.
        episode: index of the episode.

    Raises:
        EpisodeError: a number is not finite.
    """
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(values.reshape(len(values), -1).astype(np.float32)).all(axis=1)
    if not is_finite.all():
        raise EpisodeError(
            f"{source}: episode {episode} has NaN or infinity in {name}, first in row "
            f"{int(np.argmin(is_finite))}; repair it, or leave the episode out."
        )


def check_meaning(
    attrs: Mapping[str, Any], source: str, *, rate_hz: float, units: Mapping[str, str] | None = None
) -> None:
    """Check the rate and the units that a store declares.

    Args:
        attrs: attributes of the store (see `Episodes`). Missing entries are not checked.
        source: name of the file in messages.
        rate_hz: expected rate, rows per second.
        units: key -> text that the declared unit must contain.

    Raises:
        EpisodeError: the rate or a unit differs.
    """
    if (rate := attrs.get("rate_hz")) not in (None, rate_hz):
        raise EpisodeError(
            f"{source} has rate_hz={rate!r}, but the task needs {rate_hz}; resample the file."
        )
    declared_units = attrs.get("units")
    for key, unit in (units or {}).items():
        if isinstance(declared_units, Mapping) and unit not in str(declared_units.get(key, unit)):
            raise EpisodeError(
                f"{source} has {key} in {declared_units[key]!r}, but the task needs {unit}; "
                "convert it."
            )


def _problem(key: str, array: np.ndarray, ends: np.ndarray) -> str:
    """Return a description of the problem with an array; "" if there is none."""
    if array.dtype.kind not in "biuf":
        return f'"{key}" has type {array.dtype}, not numbers; remove it'
    if array.ndim == 0 or len(array) != ends[-1]:
        return f'"{key}" has shape {array.shape}, but the episodes end at row {ends[-1]}'
    if array.size == 0:
        return f'"{key}" has shape {array.shape}, which has no values; remove it'
    if array.dtype.kind == "f":
        limit = min(np.finfo(array.dtype).max, np.finfo(np.float32).max)
        is_valid = (array >= -limit) & (array <= limit)  # both comparisons are False for NaN
        if not is_valid.all():
            row = int(np.argmin(is_valid.reshape(len(array), -1).all(axis=1)))
            episode = int(np.searchsorted(ends, row, side="right"))
            value = array[row][~is_valid[row]].flat[0]
            return (
                f'"{key}" has NaN or infinity in float32, first {value} in row {row} (episode '
                f"{episode}); repair these rows or remove their episodes"
            )
    return ""
