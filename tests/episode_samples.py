"""Small episodes, comparisons and store formats that the tests of episodes and stores share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from ebt_policy.data.episodes import Episodes

FORMATS = pytest.mark.parametrize("zarr_format", [2, 3])
NAMES = pytest.mark.parametrize("name", ["store.zarr", "store.zarr.zip"])
ATTRS = {"rate_hz": 10, "units": {"action": "px"}, "roles": {"action": "action"}}


def make_episodes(lengths=(4, 6), seed=0, attrs=None) -> Episodes:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    arrays = {
        "action": rng.normal(size=(n, 2)).astype(np.float32),
        "image": rng.integers(0, 255, size=(n, 3, 4, 3), dtype=np.uint8),
        "zero": np.zeros((n, 3)),  # equal to the fill value; must still be stored as chunks
    }
    return Episodes(arrays, np.cumsum(lengths), ATTRS if attrs is None else attrs)


def assert_same(a: Episodes, b: Episodes) -> None:
    assert a.arrays.keys() == b.arrays.keys()
    for key in a.arrays:
        assert a.arrays[key].dtype == b.arrays[key].dtype
        np.testing.assert_array_equal(a.arrays[key], b.arrays[key])
    np.testing.assert_array_equal(a.ends, b.ends)
    assert a.attrs == b.attrs


def concatenated(*parts: Episodes) -> Episodes:
    arrays = {k: np.concatenate([p.arrays[k] for p in parts]) for k in parts[0].arrays}
    return Episodes(arrays, np.cumsum(np.concatenate([p.lengths for p in parts])), parts[0].attrs)


def chunk_of(folder: Path, key: str) -> Path:
    """Return the file of an array's first chunk."""
    array = zarr.open_array(folder / key, mode="r")
    return folder / key / array.metadata.encode_chunk_key((0,) * array.ndim)
