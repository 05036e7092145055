"""Robomimic's HDF5 files with any environment, observation keys and filter keys.

    data (env_args)
      demo_<i>       actions (N, A), obs/<key> (N, ...), and further arrays
    mask/<name>      names of the demonstrations of a subset

Tasks of robosuite have a reader of their own, `ebt_policy.data.robomimic`, which computes the
observations of this package's environments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.data.dataset import (
    DATASETS,
    Dataset,
    Feature,
    Role,
    as_frames,
    check_names,
    entry_names,
    guess_role,
)
from ebt_policy.data.hdf5 import h5py_module, member, subgroup
from ebt_policy.data.zarr_store import EpisodeError
from ebt_policy.io.paths import reason

_DEMO = re.compile(r".*_\d{1,18}")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@DATASETS.register("robomimic")
class RobomimicDataset(Dataset):
    """An HDF5 file in robomimic's layout."""

    format = "robomimic"

    @classmethod
    def matches(cls, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = h5py_module().File(path, "r")
        except OSError as error:
            raise EpisodeError(
                f"{path} cannot be opened ({reason(error)}): it is truncated; copy it again."
            ) from error
        try:
            self._data = self._open(self._file, "data")
            self.names = sorted(
                (name for name in self._data if _DEMO.fullmatch(name)),
                key=lambda name: int(name.rpartition("_")[2]),
            )
            if not self.names:
                raise EpisodeError(f"{path} contains no demonstrations data/demo_<number>.")
            self.lengths = np.array([self._length(name) for name in self.names], dtype=np.int64)
            self.features = self._features(self.names[0])
            self.fps = _control_rate(self._data.attrs.get("env_args"))
        except BaseException:
            self.close()
            raise

    def subsets(self) -> dict[str, list[int]]:
        if "mask" not in self._file:
            return {}
        positions = {name: i for i, name in enumerate(self.names)}
        masks = {}
        for mask in self._open(self._file, "mask"):
            names = [
                name.decode() if isinstance(name, bytes) else str(name)
                for name in np.ravel(self._member(self._file["mask"], mask)[()])
            ]
            if absent := [name for name in names if name not in positions]:
                raise EpisodeError(
                    f"{self.path}: the subset {mask} names {absent[0]}, which the file does not "
                    "have."
                )
            masks[mask] = [positions[name] for name in names]
        return masks

    def read(self, episode: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        check_names(self, names)
        every = slice(0, int(self.lengths[episode]))
        return {name: self._read_rows(episode, name, every) for name in names}

    def frames(self, episode: int, camera: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        check_names(self, [camera])
        rows = np.asarray(rows)
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        return as_frames(self._read_rows(episode, camera, part)[rows - rows[0]], camera)

    def _read_rows(self, episode: int, name: str, part: slice) -> np.ndarray:
        """Return some rows of an array of an episode."""
        demo, array = self.names[episode], self._array(self.names[episode], name)
        expected = (int(self.lengths[episode]), *self.features[name].shape)
        if array.shape != expected:
            raise EpisodeError(
                f"{self.path}: {demo} has {name} of shape {array.shape} instead of {expected}."
            )
        try:
            return array[part]
        except OSError as error:
            raise EpisodeError(
                f"{self.path}: {name} of {demo} is damaged ({reason(error)})."
            ) from error

    def instruction(self, episode: int) -> str:
        return str(self._data[self.names[episode]].attrs.get("instruction", ""))

    def close(self) -> None:
        self._file.close()

    def _open(self, group: Any, name: str) -> Any:
        try:
            return subgroup(group, name)
        except EpisodeError as error:
            raise EpisodeError(f"{self.path} {error}: it is not a robomimic file.") from error

    def _member(self, group: Any, name: str) -> Any:
        try:
            return member(group, name)
        except EpisodeError as error:
            raise EpisodeError(f"{self.path} {error}.") from error

    def _length(self, demo: str) -> int:
        """Return the number of actions of a demonstration."""
        actions = self._array(demo, "actions")
        if actions.ndim != 2 or len(actions) == 0:
            raise EpisodeError(f"{self.path}: {demo} has actions of shape {actions.shape}.")
        return len(actions)

    def _features(self, demo: str) -> dict[str, Feature]:
        """Return the arrays with one entry for each row of a demonstration."""
        group = self._open(self._data, demo)
        names = [name for name in group if name not in ("obs", "next_obs")]
        if "obs" in group:
            names += [f"obs/{name}" for name in self._open(group, "obs")]
        rows, features = self._length(demo), {}
        stored = _parse_json(self._data.attrs.get("names"))
        for name in sorted(names):
            if isinstance(group.get(name), h5py_module().Group):
                continue  # such as datagen_info of MimicGen
            array = self._array(demo, name)
            if array.ndim == 0 or len(array) != rows or array.dtype.kind not in "biuf":
                continue
            shape, dtype = tuple(array.shape[1:]), str(array.dtype)
            role, entries = guess_role(name, dtype, shape), entry_names(stored, name)
            if role is Role.ACTION:  # older conversions have only names of actions
                actions = {name: _parse_json(self._data.attrs.get("action_names"))}
                entries = entries or entry_names(actions, name)
            features[name] = Feature(name, dtype, shape, role, entries)
        return features

    def _array(self, demo: str, name: str) -> Any:
        """Return a data set of the file; its data is in this file and nowhere else."""
        *groups, last = name.split("/")
        try:
            group = subgroup(self._data, demo)
            for part in groups:
                group = subgroup(group, part)
            array = member(group, last)
        except EpisodeError as error:
            raise EpisodeError(f"{self.path}: {demo} {error}.") from error
        if not isinstance(array, h5py_module().Dataset):
            raise EpisodeError(f"{self.path}: {demo} has a group in place of the array {name}.")
        if array.external or array.is_virtual:
            raise EpisodeError(
                f"{self.path}: {demo} has {name} in another file, which is not followed; copy it "
                "here."
            )
        return array


def _parse_json(content: Any) -> Any:
    """Return the content of a JSON text; None if the text is not valid JSON."""
    try:
        return json.loads(content)
    except (TypeError, ValueError):
        return None


def _control_rate(env_args: Any) -> float | None:
    """Return the rate that robomimic's description of the environment states, if any."""
    try:
        rate = json.loads(env_args)["env_kwargs"]["control_freq"]
    except (TypeError, ValueError, KeyError):
        return None
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    return float(rate) if is_number and 0 < rate < 1e9 else None
