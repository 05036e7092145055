"""Features of clips, computed once and stored in the cache folder.

Shapes: T frames of a clip, F features of a frame."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ebt_policy.io.array_cache import cached_array
from ebt_policy.video.autoencoder import FrameFeatures
from ebt_policy.video.data import Clip


def encode_clips(
    splits: Mapping[str, Sequence[Clip]], features: FrameFeatures
) -> dict[str, list[Tensor]]:
    """Return the features (T, F) of all clips; they are computed once and cached on disk."""
    return {split: _features(clips, features) for split, clips in splits.items()}


def _features(clips: Sequence[Clip], features: FrameFeatures) -> list[Tensor]:
    frames = np.concatenate([clip.frames for clip in clips])
    digest = hashlib.sha256(frames.tobytes() + features.digest.encode()).hexdigest()
    name = f"features/{digest[:32]}.npy"
    features_array = cached_array(name, lambda: features.encode(torch.from_numpy(frames)).numpy())
    features_array = torch.from_numpy(np.array(features_array))
    return list(features_array.split([len(clip.frames) for clip in clips]))
