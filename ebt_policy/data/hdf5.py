"""Safe access to groups and arrays of an untrusted HDF5 file, without following other files.

Error messages are predicates such as "lacks data". Callers put the name of the file before them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ebt_policy.data.zarr_store import EpisodeError


def h5py_module() -> Any:
    """Return the optional module h5py.

    Raises:
        EpisodeError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise EpisodeError("HDF5 files need h5py; run pip install 'ebt_policy[hdf5]'.") from error
    return h5py


def member(group: Any, name: str) -> Any:
    """Return the group or dataset `name` of a group; follow links only within the file.

    Raises:
        EpisodeError: the member is missing or in another file.
    """
    external = isinstance(group.get(name, getlink=True), h5py_module().ExternalLink)
    if not external and name not in group:
        raise EpisodeError(f"lacks {name}")
    if external or group[name].file.filename != group.file.filename:
        raise EpisodeError(f"has {name} in another file, which is not followed; copy it here")
    return group[name]


def subgroup(group: Any, name: str) -> Any:
    """Return the group `name` of a group.

    Raises:
        EpisodeError: as in `member`, or `name` is an array.
    """
    node = member(group, name)
    if not isinstance(node, h5py_module().Group):
        raise EpisodeError(f"has an array in place of the group {name}")
    return node


def read_rows(
    group: Any, name: str, *, width: int | None = None, rows: int | None = None
) -> np.ndarray:
    """Return the array `name` (N, D) of a group, with finite values.

    Args:
        group: the group.
        name: name of the array.
        width, rows: required D and N; None for any value above 0.

    Raises:
        EpisodeError: the array is missing, in another file, not numeric or of another shape, or has
            values that are not finite in float32.
    """
    dataset = member(group, name)
    if not isinstance(dataset, h5py_module().Dataset):
        raise EpisodeError(f"has a group in place of the array {name}")
    if dataset.external or dataset.is_virtual:
        raise EpisodeError(f"has {name} in another file, which is not followed; copy it here")
    if dataset.dtype.kind not in "biuf":
        raise EpisodeError(f"has {name} of type {dataset.dtype}, not numbers")
    shape = dataset.shape or ()
    if len(shape) != 2 or 0 in shape or shape[1] != (width or shape[1]):
        raise EpisodeError(f"has {name} of shape {shape}, not (rows, {width or 'numbers'})")
    if rows is not None and shape[0] != rows:
        raise EpisodeError(f"has {shape[0]} rows of {name}, but {rows} actions")
    values = dataset[()]
    is_valid = np.abs(values) <= np.finfo(np.float32).max  # False for NaN
    if not is_valid.all():
        row = int(np.argmin(is_valid.all(axis=1)))
        raise EpisodeError(f"has NaN or infinity in {name}, first in row {row}")
    return values
