"""Video data sets by name, and the user's own video files.

Shapes: T frames of a clip, H x W pixels.
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
        name: always ``video``.
        videos, path: see `load_videos`.
        height, width: size of a frame, pixels; videos of another size are resized.
        frame_stride: N, to use every N-th frame.
        context: S, the maximum number of context frames.
        features: see `frame_features`; None to train an autoencoder first.
        skip_unreadable: see `load_video_files`.
        autoencoder_steps: number of updates of an autoencoder that is trained first.
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
    autoencoder_steps: int = 2000

    def __post_init__(self) -> None:
        for name in ("height", "width", "frame_stride", "context", "autoencoder_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"task.{name} must be at least 1, got {getattr(self, name)}.")


def load_videos(task: VideoTaskConfig) -> VideoDataset:
    """Load the videos of a task.

    Args:
        task: its ``videos`` is ``g1`` (a real robot's camera), ``push_t`` (rendered from recorded
            states of demonstrations), ``push_t_expert`` (the same from the demonstrations of this
            package) or None for the first of these that is available. Its ``path`` names video
            files or folders of them, and overrides ``videos``.

    Raises:
        VideoError, EpisodeError, ConfigError: there are no videos, or one cannot be read.
    """
    paths = (task.path,) if isinstance(task.path, str) else tuple(task.path or ())
    return _load(task.videos, paths, False, *_frame_options(task))


def load_other_videos(task: VideoTaskConfig, name_or_path: str) -> VideoDataset:
    """Load other videos for testing, with the frame size and frame stride of the task.

    Args:
        name_or_path: a name as in ``task.videos``, or a path, whose clips are all for testing.

    Raises:
        VideoError, EpisodeError, ConfigError: there are no videos, or one cannot be read.
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


@lru_cache(maxsize=1)  # Most evaluations load the same videos many times.
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
        raise ConfigError(
            f"task.videos={name} is unknown; there are {available}, or set task.path."
        )
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
    return VideoDataset(name, split(clips), f"rendered, {origin}", PUSH_T_RATE / frame_stride)


SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


WHOLE = 0.9  # A file with a smaller share of the frames that it announces is incomplete.


SAME_RATE = 1.05  # maximum ratio of the frame rates of the videos of a data set


def load_g1(height: int, width: int, frame_stride: int) -> VideoDataset:
    """Load videos of the head camera of a real Unitree G1 that picks up a bottle.

    There are 93 episodes at 6 Hz.

    Raises:
        VideoError: the recording is missing or damaged.
    """
    folder = "g1_pick_bottle"
    files = [local_data(folder, f) for f in ("frames_96x72_stride5.npz", "lowdim.npz")]
    if files[0] is None or files[1] is None:
        raise VideoError(
            f"the recording g1 was not found at $EBT_POLICY_DATA/{folder}; set EBT_POLICY_DATA, or "
            "use videos of your own."
        )
    try:
        with np.load(files[0]) as stored, np.load(files[1]) as steps:
            data, ends = stored["jpeg"].tobytes(), stored["offsets"].tolist()
            episode = np.searchsorted(steps["episode_ends"], stored["step_index"], side="right")
            rate = float(steps["fps"])
            rate /= float(np.median(np.diff(stored["step_index"])))
        frames = [decode(data[a:b], f"frame {i}", 3) for i, (a, b) in enumerate(pairwise(ends))]
    except Exception as error:  # The errors of the libraries have no common base class.
        named = " or ".join(map(str, files))
        raise VideoError(f"{named} cannot be read ({reason(error)}); download it again.") from error
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
        height, width: size of a frame, pixels.
        frame_stride: N, to use every N-th frame.
        shortest: minimum number of frames of a clip; shorter ones are skipped before the split.
        test_only: whether to put all clips into the test split, without cutting them.
        skip_unreadable: whether to skip files that cannot be read and list them in ``origin``,
            instead of raising an error.

    Raises:
        VideoError: there are no videos, some cannot be read, or their frame rates differ; the
            message names them.
    """
    clips, files, damaged, short = [], [], [], []
    rates: dict[float, Path] = {}
    for file in find_files(paths, SUFFIXES, "video", VideoError):
        try:
            frames, rate = read_video(file, height, width, frame_stride)
        except Exception as error:  # Errors of FFmpeg, OpenCV and this package: no common base.
            damaged.append(f"{file} cannot be read as a video ({reason(error)}).")
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
            f"{rates[slow]} has {slow * frame_stride:g} frames per second and {rates[fast]} has "
            f"{fast * frame_stride:g}; convert all videos to one rate."
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
        Frames (T, H, W, 3) uint8, and their rate in Hz.

    Raises:
        ValueError: the file has no video stream, no frame rate, or fewer frames than it announces.
            FFmpeg raises other errors.
    """
    frames, count = [], 0
    # The file is opened here, because FFmpeg reads "name:" at the start of a path as a protocol.
    with file.open("rb") as data, av.open(data, "r") as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise ValueError("it does not state its frame rate")
        for count, frame in enumerate(container.decode(stream), 1):
            if (count - 1) % frame_stride == 0:
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                pixels = np.ascontiguousarray(pixels)
                frames.append(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))
        if not frames:
            raise ValueError("it has no frames")
        announced = stream.frames
        # If there is sound, the duration may be the duration of the sound.
        if not announced and len(container.streams) == 1:
            announced = round((container.duration or 0) / av.time_base * rate)
        if count < WHOLE * announced:
            raise ValueError(f"it ends after {count} of {announced} frames")
    return np.stack(frames), float(rate) / frame_stride
