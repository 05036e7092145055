"""Frames of a data set's cameras, decoded and resized once and then read from disk.

The cache has one file for each camera and size, N H W 3 bytes, which is memory-mapped. So training
on more frames than fit in memory reads them from disk.

Shapes: N rows of all episodes, H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from ebt_policy.data.dataset import Dataset
from ebt_policy.errors import OutputError
from ebt_policy.io.atomic_write import atomic_path
from ebt_policy.io.download import cache_dir
from ebt_policy.io.output import check_free_space
from ebt_policy.io.paths import below, dangles
from ebt_policy.io.progress import ReportedProgress

CACHE_VERSION = 1  # increase it when decoding or resizing changes


@dataclass(frozen=True)
class StoredFrames:
    """Frames on disk for the rows of episodes.

    Attributes:
        frames: (N, H, W, 3) uint8, memory-mapped.
        rows: (R,) row of ``frames`` for each row of the episodes.
    """

    frames: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(R, H, W, 3)."""
        return (len(self.rows), *self.frames.shape[1:])

    @property
    def nbytes(self) -> int:
        """Size of the frames of all rows, in bytes."""
        return int(np.prod(self.shape))

    def read_all(self) -> np.ndarray:
        """Return the frames (R, H, W, 3) of all rows."""
        return self.read(np.arange(len(self.rows)))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the frames (..., H, W, 3) of rows (...) of the episodes."""
        return self.frames[self.rows[rows]]


def cached_frames(
    dataset: Dataset,
    cameras: Sequence[str],
    episodes: Sequence[int],
    size: tuple[int, int],
    max_gb: float,
) -> dict[str, np.ndarray]:
    """Return the frames of cameras in some episodes, each (N, H, W, 3) uint8, memory-mapped.

    Args:
        dataset: the data set.
        cameras: names of its features.
        episodes: indices of the episodes.
        size: H and W to resize the frames to, by area averaging.
        max_gb: limit of the size of the cache, in GB. Files that were not used for the longest time
            are deleted to stay within it.

    Raises:
        EpisodeError: frames are missing or damaged; nothing is stored.
        OutputError: the files would exceed the limit or cannot be written.
    """
    folder = cache_dir() / "frames"
    shape = (int(dataset.lengths[list(episodes)].sum()), *size, 3)
    file_bytes = int(np.prod(shape, dtype=float))
    if file_bytes * len(cameras) > max_gb * 1e9:
        raise OutputError(
            f"the frames of {', '.join(cameras)} need {file_bytes * len(cameras) / 1e9:.1f} GB at "
            f"{size[0]} x {size[1]} pixels, more than task.frame_cache_gb={max_gb:g}; increase it, "
            "or decrease task.image_size."
        )
    frames = {}
    for camera in cameras:
        name = digest_of(dataset, [CACHE_VERSION, camera, list(episodes), size])
        file = folder / f"{name}.npy"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Files may be deleted by other programs only while they hold this lock.
            with FileLock(folder / ".lock"):
                if not file.is_file():
                    make_room(folder, file_bytes, max_gb)
                    check_free_space(folder, file_bytes, "EBT_POLICY_CACHE")
                    with atomic_path(file) as temporary:
                        _decode_all(dataset, camera, episodes, shape, temporary)
                os.utime(file)  # the time of the last use
                frames[camera] = np.load(file, mmap_mode="r")
        except OSError as error:
            raise OutputError(
                f"the frame cache cannot be stored in {folder} ({error.strerror or error}): set "
                "EBT_POLICY_CACHE to a writable folder."
            ) from error
    return frames


def make_room(folder: Path, new_bytes: int, max_gb: float) -> None:
    """Delete the least recently used files of the cache until a new one is within the limit.

    A training that still reads a deleted file keeps it until it ends.
    """
    names = [file for file in folder.glob("*.npy") if not file.name.startswith(".")]
    files = sorted(names, key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files) + new_bytes
    for file in files:
        if total <= max_gb * 1e9:
            return
        total -= file.stat().st_size
        file.unlink(missing_ok=True)


def _decode_all(
    dataset: Dataset, camera: str, episodes: Sequence[int], shape: tuple[int, ...], file: Path
) -> None:
    """Write the frames of episodes to a new file in NumPy's format."""
    frames = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    row = 0
    with ReportedProgress(*columns) as progress:
        task = progress.add_task(f"decoding {camera}", total=shape[0])
        for episode in episodes:
            for decoded in dataset.frame_batches(episode, camera):
                frames[row : row + len(decoded)] = resize(decoded, shape[1:3])
                row += len(decoded)
                progress.update(task, completed=row)
    frames.flush()


def resize(frames: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return frames (n, H, W, 3) uint8 resized by area averaging, without change of the aspect.

    Frames of another aspect are cropped at the centre first.
    """
    height, width = frames.shape[1:3]
    if (height, width) == tuple(size):
        return frames
    scale = min(height / size[0], width / size[1])
    crop_height, crop_width = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    cropped = frames[:, top : top + crop_height, left : left + crop_width]
    target = (size[1], size[0])
    return np.stack([cv2.resize(frame, target, interpolation=cv2.INTER_AREA) for frame in cropped])


def digest_of(dataset: Dataset, use: Sequence[object]) -> str:
    """Return a name that changes with the files of a data set, and with their use."""
    files: list[Path] = []
    for path in (path.resolve() for path in dataset.paths):
        files += [f for f in sorted(below(path)) if not dangles(f)] if path.is_dir() else [path]
    status = [(str(file), file.stat()) for file in files]
    identity = [(name, s.st_size, s.st_mtime_ns) for name, s in status]
    return hashlib.sha256(json.dumps([identity, list(use)]).encode()).hexdigest()[:32]
