"""Groups and arrays of an HDF5 file that others wrote: nothing is taken from any other file.

Messages begin with what is wrong; whoever reads a file puts its name before them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ebt_policy.data.zarr_store import EpisodeError


def h5py_module() -> Any:
    """Return h5py, which is optional.

    Raises:
        EpisodeError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise EpisodeError(
            "Reading robomimic files needs h5py: pip install 'ebt_policy[robomimic]'."
        ) from error
    return h5py


def member(group: Any, name: str) -> Any:
    """Return the group or dataset `name` of a group, through links within its file.

    Raises:
        EpisodeError: there is none, or it lies in another file.
    """
    external = isinstance(group.get(name, getlink=True), h5py_module().ExternalLink)
    if not external and name not in group:
        raise EpisodeError(f"lacks {name}")
    if external or group[name].file.filename != group.file.filename:
        raise EpisodeError(f"has {name} in another file, which is not followed: copy it into this")
    return group[name]


def subgroup(group: Any, name: str) -> Any:
    """Return the group `name` of a group.

    Raises:
        EpisodeError: as `member`, or it is an array.
    """
    node = member(group, name)
    if not isinstance(node, h5py_module().Group):
        raise EpisodeError(f"has an array in place of the group {name}")
    return node


def read_rows(
    group: Any, name: str, *, width: int | None = None, rows: int | None = None
) -> np.ndarray:
    """Return the array `name` (N, D) of a group, finite numbers.

    Args:
        width, rows: D and N as they must be; None for any, but no zero.

    Raises:
        EpisodeError: it is missing, lies in another file, is no such array, or holds NaN, infinity
            or what float32 cannot hold.
    """
    dataset = member(group, name)
    if not isinstance(dataset, h5py_module().Dataset):
        raise EpisodeError(f"has a group in place of the array {name}")
    if dataset.external or dataset.is_virtual:
        raise EpisodeError(f"has {name} in another file, which is not followed: copy it into this")
    if dataset.dtype.kind not in "biuf":
        raise EpisodeError(f"has {name} of type {dataset.dtype}, not numbers")
    shape = dataset.shape or ()
    if len(shape) != 2 or 0 in shape or shape[1] != (width or shape[1]):
        raise EpisodeError(f"has {name} of shape {shape}, not (rows, {width or 'numbers'})")
    if rows is not None and shape[0] != rows:
        raise EpisodeError(f"has {shape[0]} rows of {name}, but {rows} actions")
    values = dataset[()]
    is_valid = np.abs(values) <= np.finfo(np.float32).max  # NaN is not
    if not is_valid.all():
        row = int(np.argmin(is_valid.all(axis=1)))
        raise EpisodeError(f"has NaN or infinity in {name}, first in row {row}")
    return values
