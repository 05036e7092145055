"""A cache on disk for arrays that take long to compute."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from filelock import FileLock

from ebt_policy.errors import OutputError
from ebt_policy.io.atomic_write import atomic_path
from ebt_policy.io.download import cache_dir


def cached_array(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array `name` of the cache, memory-mapped; compute it if missing or damaged.

    If several processes need the array, one computes it and the others wait.

    Args:
        name: path of its file in the cache folder, with a digest of all that the array depends on.
        make: computes the array.

    Raises:
        OutputError: if the cache cannot be written.
    """
    file = cache_dir() / name
    if (array := _stored(file)) is not None:
        return array
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if (array := _stored(file)) is None:
                array = make()
                with atomic_path(file) as temporary:
                    np.save(temporary, array)
    except OSError as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        raise OutputError(
            f"{file.name} cannot be stored in {file.parent} ({reason}): set "
            "EBT_POLICY_CACHE to a writable folder."
        ) from error
    stored = _stored(file)  # None for an empty array, which cannot be memory-mapped
    return array if stored is None else stored


def _stored(file: os.PathLike[str]) -> np.ndarray | None:
    try:
        return np.load(file, mmap_mode="r")
    except Exception:  # missing or damaged; NumPy's errors have no common base class
        return None
