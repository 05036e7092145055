"""Videos by name, and their features: what models of video learn from and are evaluated on.

Shapes: T frames of a clip, F features of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np

from ebt_policy.data.push_t import load_push_t
from ebt_policy.data.render_cache import rendered_observations
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.io.image_files import decode
from ebt_policy.io.local_data import local_data
from ebt_policy.io.paths import (
    SKIP_HINT,
    find_files,
    format_skipped,
    held_out_by_name,
    listed,
    reason,
)
from ebt_policy.video.data import Clip, VideoDataset, VideoError, resized, split

PUSH_T = EnvSpec("ebt_policy/PushTImage-v0", 300)
PUSH_T_DEMOS: dict[str, Literal["expert"] | None] = {"push_t": None, "push_t_expert": "expert"}
NAMES = ("g1", *PUSH_T_DEMOS)
PUSH_T_RATE = 10.0  # Hz, of the recorded states


@dataclass(frozen=True)
class VideoTaskConfig:
    """The section ``task`` of a video model's configuration.

    Args:
        name: video.
        videos, path: see `load_videos`.
        height, width: of frames, pixels; videos of another size are resized.
        frame_stride: take every N-th frame.
        context: S, frames that a prediction sees at most.
        features: see `frame_features`; None for an autoencoder that is trained first.
        skip_unreadable: see `load_video_files`.
    """

    name: str
    videos: str | None
    path: str | list[str] | None
    height: int
    width: int
    frame_stride: int
    context: int
    features: str | None
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        for name in ("height", "width", "frame_stride", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"task.{name} must be at least 1, got {getattr(self, name)}.")


def load_videos(task: VideoTaskConfig) -> VideoDataset:
    """The videos of a task: ``task.videos`` is ``g1`` (a real robot's camera), ``push_t`` (drawn
    from the recorded states of demonstrations), ``push_t_expert`` (of those that are shipped) or
    None for the first of these that there is; ``task.path`` files of one's own, or folders of them.

    Raises:
        VideoError, EpisodeError, ConfigError: there are none, or one cannot be read.
    """
    paths = (task.path,) if isinstance(task.path, str) else tuple(task.path or ())
    return _load(task.videos, paths, False, *_frame_options(task))


def load_other_videos(task: VideoTaskConfig, name_or_path: str) -> VideoDataset:
    """Load other videos to test on, in the frame size and rate of the task.

    Args:
        name_or_path: a name as in ``task.videos``, whose test split is used, or a path, used whole.

    Raises:
        VideoError, EpisodeError, ConfigError: there are none, or one cannot be read.
    """
    if Path(name_or_path).exists():
        return _load(None, (name_or_path,), True, *_frame_options(task))
    if name_or_path not in NAMES:
        raise ConfigError(
            f"video_dataset={name_or_path} is neither a path nor one of {', '.join(NAMES)}."
        )
    return _load(name_or_path, (), False, *_frame_options(task))


def _frame_options(task: VideoTaskConfig) -> tuple[int, int, int, int, bool]:
    return task.height, task.width, task.frame_stride, task.context + 1, task.skip_unreadable


@lru_cache(maxsize=1)  # an evaluation mostly asks for one of them, many times
def _load(
    name: str | None, paths: tuple[str, ...], test_only: bool, height: int, width: int,
    frame_stride: int, shortest: int, skip_unreadable: bool,
) -> VideoDataset:  # fmt: skip
    if paths:
        return load_video_files(
            paths,
            height,
            width,
            frame_stride,
            shortest=shortest,
            test_only=test_only,
            skip_unreadable=skip_unreadable,
        )
    if name is None:
        name = "g1" if local_data("g1_pick_bottle", "lowdim.npz") else "push_t"
    if name == "g1":
        return load_g1(height, width, frame_stride)
    if name not in PUSH_T_DEMOS:
        available = ", ".join(NAMES)
        raise ConfigError(f"task.videos={name} is unknown; there are {available}, or task.path.")
    episodes, origin = load_push_t(demos=PUSH_T_DEMOS[name])
    lengths = zip(episodes.ends, episodes.lengths, strict=True)
    frame_rows = [np.arange(end - length, end, frame_stride) for end, length in lengths]
    frames = rendered_observations(PUSH_T, episodes.arrays["state"][np.concatenate(frame_rows)])[
        "image"
    ]
    episode_frames = np.split(frames, np.cumsum([len(rows) for rows in frame_rows])[:-1])
    clips = [
        Clip(resized(episode, height, width), f"episode {i}")
        for i, episode in enumerate(episode_frames)
    ]
    return VideoDataset(name, split(clips), f"drawn, {origin}", PUSH_T_RATE / frame_stride)


SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


WHOLE = 0.9  # share of the frames that a file announces below which it was cut short


SAME_RATE = 1.05  # ratio of rates up to which videos show motion at one speed


def load_g1(height: int, width: int, frame_stride: int) -> VideoDataset:
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
        episode_frames = np.stack(
            [frames[i] for i in np.flatnonzero(episode == number)[::frame_stride]]
        )
        clips.append(Clip(resized(episode_frames, height, width), f"g1 episode {number}"))
    return VideoDataset("g1", split(clips), f"from {files[0]}", rate / frame_stride)


def load_video_files(
    paths: Sequence[str], height: int, width: int, frame_stride: int, *, shortest: int = 1,
    test_only: bool = False, skip_unreadable: bool = False,
) -> VideoDataset:  # fmt: skip
    """Load video files, or folders of them.

    Args:
        shortest: frames that a window needs. Clips of fewer are left out before some are held out.
        test_only: put all clips in the test split, uncut.
        skip_unreadable: leave out what cannot be read, and say so, instead of an error.

    Raises:
        VideoError: there are none, some cannot be read, or they differ in rate; names them.
    """
    clips, files, damaged, short = [], [], [], []
    rates: dict[float, Path] = {}
    for file in find_files(paths, SUFFIXES, "video", VideoError):
        try:
            frames, rate = read_video(file, height, width, frame_stride)
        except Exception as error:  # FFmpeg's, OpenCV's and our own share no base
            damaged.append(f"{file} is no video that can be read ({reason(error)}).")
            continue
        if len(frames) < shortest:
            short.append(
                f"{file} has {len(frames)} frames, a window needs {shortest} (lower task.context "
                "or task.frame_stride)."
            )
            continue
        files.append(file)
        clips.append(Clip(frames, str(file)))
        rates.setdefault(rate, file)
    if damaged and not skip_unreadable:
        raise VideoError(f"{listed(damaged)} {SKIP_HINT}")
    if not clips:
        raise VideoError(f"no video can be used: {listed(damaged + short)}")
    slow, fast = min(rates), max(rates)
    if fast > SAME_RATE * slow:
        raise VideoError(
            f"{rates[slow]} has {slow * frame_stride:g} frames a second and {rates[fast]} "
            f"{fast * frame_stride:g}: the same motion would differ; convert them to one rate."
        )
    if test_only:
        splits = {"test": clips}
    else:
        splits = split(clips, held_out_by_name(files, ["validation", "test"]))
    origin = f"from {len(files)} files{format_skipped(damaged + short)}".removesuffix(".")
    return VideoDataset(Path(paths[0]).stem, splits, origin, slow)


def read_video(file: Path, height: int, width: int, frame_stride: int) -> tuple[np.ndarray, float]:
    """Read every N-th frame of a file (N = `frame_stride`), upright and resized.

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
            if (count - 1) % frame_stride == 0:
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
    return np.stack(frames), float(rate) / frame_stride
