"""Videos to learn from: real robot recordings, or the user's files, as 8-bit frames in memory.

Shapes: T frames of a clip, H x W pixels, F features of a frame, S context, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import torch
from torch import Tensor

from ebt_policy.errors import UserError
from ebt_policy.image.data import decode
from ebt_policy.io.local_data import local_data
from ebt_policy.io.paths import MEND, held_out_by_name, left_out, listed, own_files, reason

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
PIECES = 10  # of which one validates and one is for the test
WHOLE = 0.9  # share of the frames that a file announces below which it was cut short
SAME_RATE = 1.05  # ratio of rates up to which videos show motion at one speed


class VideoError(UserError, ValueError):
    """Videos that are missing or cannot be used."""


class Clip(NamedTuple):
    """Frames (T, H, W, 3) uint8 that follow each other, and what they are called."""

    frames: np.ndarray
    name: str


@dataclass(frozen=True)
class VideoDataset:
    """A set of videos.

    Attributes:
        name: for tables.
        parts: train, validation and test.
        origin: where it came from, for a line.
        rate_hz: frames a second.
    """

    name: str
    parts: dict[str, list[Clip]]
    origin: str
    rate_hz: float


def split(clips: Sequence[Clip], of: Sequence[str] | None = None) -> dict[str, list[Clip]]:
    """Every tenth clip validates, every tenth is for the test; of fewer clips, tenths of each.

    Args:
        of: the part of each clip, where there are enough, if not by its place.

    Raises:
        VideoError: there are too few frames.
    """
    if len(clips) < PIECES:
        of = None
        clips = [
            Clip(frames, f"{clip.name} {i}")
            for clip in clips
            for i, frames in enumerate(np.array_split(clip.frames, PIECES))
            if len(frames)
        ]
    parts: dict[str, list[Clip]] = {"train": [], "validation": [], "test": []}
    for i, clip in enumerate(clips):
        part = {3: "validation", 6: "test"}.get(i % PIECES, "train")
        parts[part if of is None else of[i]].append(clip)
    if not all(parts.values()):
        raise VideoError("there are too few frames to learn from and to test on.")
    return parts


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames (T, H, W, 3) of another size, uint8."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames])


def load_g1(height: int, width: int, every: int) -> VideoDataset:
    """A real Unitree G1's head camera while it picks up a bottle: 93 episodes at 6 Hz.

    Raises:
        VideoError: it is not there, or damaged.
    """
    folder = "g1_pick_bottle"
    files = [local_data(folder, f) for f in ("frames_96x72_stride5.npz", "lowdim.npz")]
    if files[0] is None or files[1] is None:
        raise VideoError(
            f"the recording g1 is looked for at $EBT_POLICY_DATA/{folder}, and is not there; set "
            "the variable, or use videos of your own."
        )
    try:
        with np.load(files[0]) as stored, np.load(files[1]) as steps:
            data, ends = stored["jpeg"].tobytes(), stored["offsets"].tolist()
            episode = np.searchsorted(steps["episode_ends"], stored["step_index"], side="right")
            rate = float(steps["fps"])
            rate /= float(np.median(np.diff(stored["step_index"])))
        frames = [decode(data[a:b], f"frame {i}", 3) for i, (a, b) in enumerate(pairwise(ends))]
    except Exception as error:  # the libraries' own errors share no base
        named = " or ".join(map(str, files))
        raise VideoError(f"{named} cannot be read ({reason(error)}); fetch it again.") from error
    clips = []
    for number in np.unique(episode):
        of = np.stack([frames[i] for i in np.flatnonzero(episode == number)[::every]])
        clips.append(Clip(resized(of, height, width), f"g1 episode {number}"))
    return VideoDataset("g1", split(clips), f"from {files[0]}", rate / every)


def load_own(
    paths: Sequence[str], height: int, width: int, every: int, *, shortest: int = 1,
    whole: bool = False, skip_damaged: bool = False,
) -> VideoDataset:  # fmt: skip
    """Load video files, or folders of them.

    Args:
        shortest: frames that a window needs. Clips of fewer are left out before some are held out.
        whole: nothing is to be learned from them: all is for the test, no clip is cut.
        skip_damaged: leave out what cannot be read, and say so, instead of an error.

    Raises:
        VideoError: there are none, some cannot be read, or they differ in rate; names them.
    """
    clips, files, damaged, short = [], [], [], []
    rates: dict[float, Path] = {}
    for file in own_files(paths, SUFFIXES, "video", VideoError):
        try:
            frames, rate = read_video(file, height, width, every)
        except Exception as error:  # FFmpeg's, OpenCV's and our own share no base
            damaged.append(f"{file} is no video that can be read ({reason(error)}).")
            continue
        if len(frames) < shortest:
            short.append(
                f"{file} has {len(frames)} frames, a window needs {shortest} (lower task.context "
                "or task.every)."
            )
            continue
        files.append(file)
        clips.append(Clip(frames, str(file)))
        rates.setdefault(rate, file)
    if damaged and not skip_damaged:
        raise VideoError(f"{listed(damaged)} {MEND}")
    if not clips:
        raise VideoError(f"no video can be used: {listed(damaged + short)}")
    slow, fast = min(rates), max(rates)
    if fast > SAME_RATE * slow:
        raise VideoError(
            f"{rates[slow]} has {slow * every:g} frames a second and {rates[fast]} "
            f"{fast * every:g}: the same motion would differ; convert them to one rate."
        )
    if whole:
        parts = {"test": clips}
    else:
        parts = split(clips, held_out_by_name(files, ["validation", "test"]))
    origin = f"from {len(files)} files{left_out(damaged + short)}".removesuffix(".")
    return VideoDataset(Path(paths[0]).stem, parts, origin, slow)


def read_video(file: Path, height: int, width: int, every: int) -> tuple[np.ndarray, float]:
    """Read every N-th frame of a file (N = `every`), upright and resized.

    Returns:
        (T, H, W, 3) uint8, and how many of them a second has.

    Raises:
        ValueError: no pictures, no rate, or fewer frames than the file says. FFmpeg raises others.
    """
    frames, count = [], 0
    # Opened here, as FFmpeg takes what is before a colon in a name for a protocol.
    with file.open("rb") as data, av.open(data, "r") as container:
        if not container.streams.video:
            raise ValueError("it has no pictures")
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise ValueError("it does not say how many frames a second it has")
        for count, frame in enumerate(container.decode(stream), 1):
            if (count - 1) % every == 0:
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                pixels = np.ascontiguousarray(pixels)
                frames.append(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))
        if not frames:
            raise ValueError("it has no frames")
        announced = stream.frames
        if not announced and len(container.streams) == 1:  # else it lasts as long as its sound
            announced = round((container.duration or 0) / av.time_base * rate)
        if count < WHOLE * announced:
            raise ValueError(f"it ends after {count} of {announced} frames")
    return np.stack(frames), float(rate) / every


class Frames:
    """Single frames as images: "image" (B, H, W, 3) uint8.

    Args:
        clips: of one size.
        device: where batches are made.
    """

    def __init__(self, clips: Sequence[Clip], device: torch.device | str = "cpu") -> None:
        self.pixels = torch.from_numpy(np.concatenate([clip.frames for clip in clips])).to(device)

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        return {"image": self.pixels[index.to(self.pixels.device, non_blocking=True)]}


class FrameWindows:
    """Windows of S + 1 frames that follow each other, as features.

    Args:
        clips: (T, F) each; those of fewer frames are left out.
        context: S.
        stride: frames between the starts of windows.
        device: where batches are made.

    Raises:
        VideoError: none is long enough.
    """

    def __init__(
        self, clips: Sequence[Tensor], context: int, *, stride: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        starts: list[int] = []
        numbers: list[int] = []  # of the clip of each window
        first = 0
        for number, clip in enumerate(clips):
            of = range(first, first + max(len(clip) - context, 0), stride)
            starts += of
            numbers += [number] * len(of)
            first += len(clip)
        if not starts:
            raise VideoError(
                f"no clip has {context + 1} frames, for a context of {context}; lower "
                "task.context or task.every."
            )
        self.frames = torch.cat(list(clips)).to(device)
        self.starts, self.clip = torch.tensor(starts), torch.tensor(numbers)
        self.length = context + 1

    def __len__(self) -> int:
        return len(self.starts)

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """ "frames" (B, S + 1, F)."""
        rows = self.starts[index][:, None] + torch.arange(self.length)
        return {"frames": self.frames[rows.to(self.frames.device, non_blocking=True)]}
