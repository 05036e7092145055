"""Video data sets as 8-bit frames in memory, and batches of frames or of windows of features.

Shapes: T frames of a clip, H x W pixels, F features of a frame, S context, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ebt_policy.errors import UserError

PIECES = 10  # One of this many clips is for validation, and one for testing.


class VideoError(UserError, ValueError):
    """Videos that are missing or cannot be used."""


class Clip(NamedTuple):
    """Consecutive frames (T, H, W, 3) uint8, and the name of the clip."""

    frames: np.ndarray
    name: str


@dataclass(frozen=True)
class VideoDataset:
    """A set of videos.

    Attributes:
        name: name in tables.
        splits: name of a split (``train``, ``validation``, ``test``) -> its clips.
        origin: where the videos come from, for one line of output.
        rate_hz: frames per second.
    """

    name: str
    splits: dict[str, list[Clip]]
    origin: str
    rate_hz: float


def split(clips: Sequence[Clip], clip_splits: Sequence[str] | None = None) -> dict[str, list[Clip]]:
    """Split clips: one of ten is for validation, one of ten for testing, the rest for training.

    If there are fewer than ten clips, each is cut into ten pieces, and the pieces are split.

    Args:
        clip_splits: the split of each clip; None assigns clips by position. It is ignored if there
            are fewer than ten clips.

    Raises:
        VideoError: there are too few frames.
    """
    if len(clips) < PIECES:
        clip_splits = None
        clips = [
            Clip(frames, f"{clip.name} {i}")
            for clip in clips
            for i, frames in enumerate(np.array_split(clip.frames, PIECES))
            if len(frames)
        ]
    splits: dict[str, list[Clip]] = {"train": [], "validation": [], "test": []}
    for i, clip in enumerate(clips):
        split_name = {3: "validation", 6: "test"}.get(i % PIECES, "train")
        splits[split_name if clip_splits is None else clip_splits[i]].append(clip)
    if not all(splits.values()):
        raise VideoError(
            "there are too few frames for training, validation and testing; add videos."
        )
    return splits


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return frames (T, H, W, 3) uint8, resized."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames])


class Frames:
    """Single frames as images: "image" (B, H, W, 3) uint8.

    Args:
        clips: clips whose frames have one size.
        device: device of the frames and the batches.
    """

    def __init__(self, clips: Sequence[Clip], device: torch.device | str = "cpu") -> None:
        self.pixels = torch.from_numpy(np.concatenate([clip.frames for clip in clips])).to(device)

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        return {"image": self.pixels[index.to(self.pixels.device, non_blocking=True)]}


class FrameWindows:
    """Windows of the features of S + 1 consecutive frames.

    Args:
        clips: features (T, F) of each clip; clips with fewer than S + 1 frames are skipped.
        context: S.
        stride: number of frames between the starts of two windows.
        device: device of the features and the batches.

    Raises:
        VideoError: no clip is long enough.
    """

    def __init__(
        self, clips: Sequence[Tensor], context: int, *, stride: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        starts: list[int] = []
        numbers: list[int] = []  # index of the clip of each window
        first = 0
        for number, clip in enumerate(clips):
            clip_starts = range(first, first + max(len(clip) - context, 0), stride)
            starts += clip_starts
            numbers += [number] * len(clip_starts)
            first += len(clip)
        if not starts:
            raise VideoError(
                f"no clip has {context + 1} frames, as task.context={context} needs; lower "
                "task.context or task.frame_stride."
            )
        self.frames = torch.cat(list(clips)).to(device)
        self.starts, self.clip = torch.tensor(starts), torch.tensor(numbers)
        self.length = context + 1

    def __len__(self) -> int:
        return len(self.starts)

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """Return the windows of some indices: "frames" (B, S + 1, F)."""
        rows = self.starts[index][:, None] + torch.arange(self.length)
        return {"frames": self.frames[rows.to(self.frames.device, non_blocking=True)]}
