"""Frames of a data set that are decoded and resized once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from lerobot_files import (
    CAMERA,
    SIZE,
    frames_of,
    rows_of,
    write_lerobot,
    write_video,
)

from ebt_policy.data.dataset import open_dataset
from ebt_policy.data.episodes import EpisodeError
from ebt_policy.data.frame_cache import cached_frames, resize
from ebt_policy.errors import OutputError, UserError

LENGTHS = (12, 7, 20)
ALL = range(3)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frames"


def test_frames_are_decoded_once(tmp_path, cache, monkeypatch):
    root = write_lerobot(tmp_path / "set", "v3.0", rows_of(LENGTHS), video=True)
    with open_dataset(root) as dataset:
        frames = cached_frames(dataset, [CAMERA], ALL, (16, 24), max_gb=1)[CAMERA]
        assert isinstance(frames, np.memmap) and frames.shape == (sum(LENGTHS), 16, 24, 3)
        expected = resize(np.concatenate([frames_of(i, n) for i, n in enumerate(LENGTHS)]),
                          (16, 24))  # fmt: skip
        assert np.abs(frames.astype(int) - expected)[:, 8:].mean() < 2
        monkeypatch.setattr(type(dataset), "frames", lambda *_: pytest.fail("decoded again"))
        again = cached_frames(dataset, [CAMERA], ALL, (16, 24), 1)[CAMERA]
        np.testing.assert_array_equal(again, frames)
    os.utime(root / "meta/info.json", (1, 1))  # the data set changed
    with open_dataset(root) as dataset, pytest.raises(pytest.fail.Exception, match="decoded again"):
        cached_frames(dataset, [CAMERA], ALL, (16, 24), max_gb=1)


def test_a_failed_frame_cache_leaves_nothing_behind(tmp_path, cache):
    root = write_lerobot(tmp_path / "set", "v3.0", rows_of(LENGTHS), video=True)
    write_video(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", LENGTHS[:2])
    with open_dataset(root) as dataset:
        with pytest.raises(EpisodeError, match="has no frame at"):
            cached_frames(dataset, [CAMERA], ALL, SIZE, max_gb=1)
        with pytest.raises(OutputError, match=r"more than task.frame_cache_gb=1e-06; increase it"):
            cached_frames(dataset, [CAMERA], ALL, SIZE, max_gb=1e-6)
    assert [file.name for file in cache.iterdir()] == [".lock"]


def test_frames_of_another_aspect_are_cropped_at_the_centre():
    frames = np.zeros((1, 20, 60, 3), np.uint8)
    frames[:, :, 20:40] = 200
    assert (resize(frames, (10, 10)) == 200).all()
    assert isinstance(EpisodeError("x"), UserError)


def test_the_cache_stays_within_its_limit(tmp_path, cache):
    """The least recently used file is deleted, and whoever reads it keeps it."""
    root = write_lerobot(tmp_path / "set", "v3.0", rows_of(LENGTHS), video=True)
    size = sum(LENGTHS) * 16 * 24 * 3 + 200
    with open_dataset(root) as dataset:

        def frames_at(width: int) -> np.ndarray:
            limit = 2.5 * size / 1e9
            return cached_frames(dataset, [CAMERA], ALL, (16, width), limit)[CAMERA]

        first = frames_at(24)
        (older,) = cache.glob("*.npy")
        second = frames_at(23)
        (newer,) = set(cache.glob("*.npy")) - {older}
        os.utime(older, (1, 1))
        os.utime(newer, (2, 2))
        (cache / ".temporary.npy").write_bytes(bytes(100))  # of a program that decodes now
        frames_at(24)  # The older one is used again, so that the newer one is deleted.
        frames_at(22)
        assert older.exists() and not newer.exists() and (cache / ".temporary.npy").exists()
        assert first.shape[2] == 24 and first.sum() > 0 and second.sum() > 0
