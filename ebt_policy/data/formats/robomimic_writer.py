"""Writer of robomimic's HDF5 layout, for any environment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ebt_policy.data.dataset import Feature, Role
from ebt_policy.data.formats.writer import DatasetWriter, Frames
from ebt_policy.data.hdf5 import h5py_module


class RobomimicWriter(DatasetWriter):
    """Writer of an HDF5 file."""

    is_folder = False

    def __init__(self, path: Path, features: Sequence[Feature], fps: float | None) -> None:
        self._file = h5py_module().File(path, "w")
        self._data = self._file.create_group("data")
        rate = {} if fps is None else {"control_freq": fps}
        # robomimic needs a name; the environment is not known.
        env = {"env_name": "unknown", "env_version": "", "type": 1, "env_kwargs": rate}
        self._data.attrs["env_args"] = json.dumps(env)
        names = {feature.name: list(feature.entries) for feature in features if feature.entries}
        if names:
            self._data.attrs["names"] = json.dumps(names)
        self._total = self._count = 0

    @classmethod
    def name_of(cls, base: str, role: Role) -> str:
        if role is Role.ACTION:
            return "actions" if base == "action" else base
        return base if role is Role.OTHER else f"obs/{base}"

    def add(
        self, rows: Mapping[str, np.ndarray], frames: Mapping[str, Frames], instruction: str
    ) -> None:
        demo = self._data.create_group(f"demo_{self._count}")
        length = len(next(iter(rows.values())))
        for name, values in rows.items():
            demo.create_dataset(name, data=values)
        for name, batches in frames.items():
            start, array = 0, None
            for batch in batches:
                if array is None:
                    shape = (length, *batch.shape[1:])
                    chunks = (1, *batch.shape[1:])
                    array = demo.create_dataset(
                        name, shape, np.uint8, chunks=chunks, compression="gzip"
                    )
                array[start : start + len(batch)] = batch
                start += len(batch)
        demo.attrs["num_samples"] = length
        if instruction:
            demo.attrs["instruction"] = instruction
        self._total, self._count = self._total + length, self._count + 1

    def finish(self) -> None:
        self._data.attrs["total"] = self._total

    def close(self) -> None:
        self._file.close()
