"""Arrays that take long to make, made once and kept in the cache folder."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from filelock import FileLock

from ebt_policy.errors import OutputError
from ebt_policy.io.atomic_write import atomic_path
from ebt_policy.io.download import cache_dir


def cached_array(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array `name` of the cache, memory-mapped; one that is absent or damaged is made.

    Of several processes one makes it and the others wait.

    Args:
        name: of its file below the cache folder, a digest of what the array depends on.

    Raises:
        OutputError: the cache cannot be written.
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
            f"{file.name} cannot be kept in {file.parent} ({reason}): set "
            "EBT_POLICY_CACHE to a folder that can be written."
        ) from error
    stored = _stored(file)  # none for an array without numbers, which cannot be mapped
    return array if stored is None else stored


def _stored(file: os.PathLike[str]) -> np.ndarray | None:
    try:
        return np.load(file, mmap_mode="r")
    except Exception:  # none yet, or a damaged one, for which NumPy's errors share no base
        return None
