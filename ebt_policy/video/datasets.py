"""Videos by name, and their features: what models of video learn from and are evaluated on.

Shapes: T frames of a clip, F features of a frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ebt_policy.data.demonstrations import local_data
from ebt_policy.data.push_t import load_push_t
from ebt_policy.data.render_cache import rendered_observations
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.io.array_cache import cached_array
from ebt_policy.video.autoencoder import FrameFeatures
from ebt_policy.video.data import Clip, VideoDataset, load_g1, load_own, resized, split

PUSH_T = EnvSpec("ebt_policy/PushTImage-v0", 300)
PUSH_T_DEMOS: dict[str, Literal["expert"] | None] = {"push_t": None, "push_t_expert": "expert"}
NAMES = ("g1", *PUSH_T_DEMOS)
PUSH_T_RATE = 10.0  # Hz, of the recorded states


@dataclass(frozen=True)
class VideoTaskConfig:
    """The section ``task`` of a video model's configuration.

    Args:
        name: video.
        videos, path: see `load_footage`.
        height, width: of frames, pixels; videos of another size are resized.
        every: take every so many frames.
        context: S, frames that a prediction sees at most.
        features: see `frame_features`; None for an autoencoder that is trained first.
        skip_damaged: see `load_own`.
    """

    name: str
    videos: str | None
    path: str | list[str] | None
    height: int
    width: int
    every: int
    context: int
    features: str | None
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        for name in ("height", "width", "every", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"task.{name} must be at least 1, got {getattr(self, name)}.")


def load_footage(task: VideoTaskConfig) -> VideoDataset:
    """The videos of a task: ``task.videos`` is ``g1`` (a real robot's camera), ``push_t`` (drawn
    from the recorded states of demonstrations), ``push_t_expert`` (of those that are shipped) or
    None for the first of these that there is; ``task.path`` files of one's own, or folders of them.

    Raises:
        VideoError, EpisodeError, ConfigError: there are none, or one cannot be read.
    """
    paths = (task.path,) if isinstance(task.path, str) else tuple(task.path or ())
    return _load(task.videos, paths, False, *_how(task))


def other_footage(task: VideoTaskConfig, given: str) -> VideoDataset:
    """Videos to test on that are not those of the training: a name as ``task.videos``, of which the
    test part counts, or a path, all of which does; in the frames of the task.

    Raises:
        VideoError, EpisodeError, ConfigError: there are none, or one cannot be read.
    """
    if Path(given).exists():
        return _load(None, (given,), True, *_how(task))
    if given not in NAMES:
        raise ConfigError(f"video_dataset={given} is neither a path nor one of {', '.join(NAMES)}.")
    return _load(given, (), False, *_how(task))


def _how(task: VideoTaskConfig) -> tuple[int, int, int, int, bool]:
    return task.height, task.width, task.every, task.context + 1, task.skip_damaged


@lru_cache(maxsize=1)  # an evaluation mostly asks for one of them, many times
def _load(
    name: str | None, paths: tuple[str, ...], whole: bool, height: int, width: int, every: int,
    shortest: int, skip_damaged: bool,
) -> VideoDataset:  # fmt: skip
    if paths:
        return load_own(
            paths, height, width, every, shortest=shortest, whole=whole, skip_damaged=skip_damaged
        )
    if name is None:
        name = "g1" if local_data("g1_pick_bottle", "lowdim.npz") else "push_t"
    if name == "g1":
        return load_g1(height, width, every)
    if name not in PUSH_T_DEMOS:
        known = ", ".join(NAMES)
        raise ConfigError(f"task.videos={name} is unknown; there are {known}, or task.path.")
    episodes, origin = load_push_t(demos=PUSH_T_DEMOS[name])
    lengths = zip(episodes.ends, episodes.lengths, strict=True)
    kept = [np.arange(end - length, end, every) for end, length in lengths]
    seen = rendered_observations(PUSH_T, episodes.arrays["state"][np.concatenate(kept)])["image"]
    parts = np.split(seen, np.cumsum([len(rows) for rows in kept])[:-1])
    clips = [Clip(resized(of, height, width), f"episode {i}") for i, of in enumerate(parts)]
    return VideoDataset(name, split(clips), f"drawn, {origin}", PUSH_T_RATE / every)


def encode_clips(
    parts: Mapping[str, Sequence[Clip]], features: FrameFeatures
) -> dict[str, list[Tensor]]:
    """Features (T, F) of all clips; made once, and kept in the cache folder."""
    return {part: _features(clips, features) for part, clips in parts.items()}


def _features(clips: Sequence[Clip], features: FrameFeatures) -> list[Tensor]:
    frames = np.concatenate([clip.frames for clip in clips])
    digest = hashlib.sha256(frames.tobytes() + features.digest.encode()).hexdigest()
    name = f"features/{digest[:32]}.npy"
    found = cached_array(name, lambda: features.encode(torch.from_numpy(frames)).numpy())
    found = torch.from_numpy(np.array(found))
    return list(found.split([len(clip.frames) for clip in clips]))
