"""Metrics of video models on held-out clips: prediction errors, and signals of hard frames.

Shapes: N windows, S context, T frames of a clip, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.detection import Samples, auroc
from ebt_policy.video.autoencoder import FrameFeatures, frame_features
from ebt_policy.video.data import Clip, FrameWindows
from ebt_policy.video.datasets import VideoTaskConfig, load_other_videos, load_videos
from ebt_policy.video.feature_cache import encode_clips
from ebt_policy.video.model import VideoModel, mean_square

BATCH = 64  # windows in a batch
HARD_SHARE = 0.25  # share of the frames, with the highest errors, that count as hard


class EvalSet(NamedTuple):
    """Held-out clips.

    Attributes:
        clips: the clips with their frames.
        features: features (T, F) of each clip.
        windows: windows of all clips, in the order of the clips.
        encoder: encoder of the features.
        metadata: name and number of the clips, and the context.
        rate_hz: frames per second.
        digest: digest of features and windows.
    """

    clips: list[Clip]
    features: list[Tensor]
    windows: FrameWindows
    encoder: FrameFeatures
    metadata: dict[str, Any]
    rate_hz: float
    digest: str


class PredictionErrors(NamedTuple):
    """Errors (N, S) of a model's predicted frames, and its signals (N, S) by name."""

    errors: np.ndarray
    signals: dict[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """Return the content as JSON values, for the cache."""
        signals = {name: values.tolist() for name, values in self.signals.items()}
        return {"errors": self.errors.tolist(), "signals": signals}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> PredictionErrors:
        """Rebuild the errors and signals from the result of `to_json`."""
        signals = {name: np.array(values) for name, values in stored["signals"].items()}
        return cls(np.array(stored["errors"]), signals)


def load_eval_set(model: VideoModel, video_dataset: str | None, device: torch.device) -> EvalSet:
    """Load the test clips of the model's own data set, or other videos.

    Args:
        video_dataset: see `load_other_videos`; None for the model's own test clips.

    Raises:
        VideoError, ConfigError: the clips or their features are not available.
    """
    task = options(VideoTaskConfig, model.config["task"], "task")
    dataset = load_videos(task) if video_dataset is None else load_other_videos(task, video_dataset)
    encoder = frame_features(str(task.features), device)
    if encoder.digest != model.encoder:
        raise ConfigError(
            f"{task.features} is not the encoder that the model was trained with; restore that "
            "encoder, or train the model again."
        )
    clips = dataset.splits["test"]
    features = encode_clips({"test": clips}, encoder)["test"]
    windows = FrameWindows(features, model.context, stride=model.context, device=device)
    long_enough = len(np.unique(windows.clip.numpy()))
    metadata = {"videos": dataset.name, "clips": long_enough, "context": model.context}
    content = sha256(windows.frames.cpu().numpy().tobytes() + windows.starts.numpy().tobytes())
    digest = f"{content.hexdigest()[:16]} context {model.context}"
    return EvalSet(clips, features, windows, encoder, metadata, dataset.rate_hz, digest)


def prediction_errors(model: VideoModel, windows: FrameWindows) -> PredictionErrors:
    """Return the prediction errors and the signals of a model on windows."""
    generator = torch.Generator().manual_seed(0)
    errors, signals = [], []
    for index in torch.arange(len(windows)).split(BATCH):
        rows = model.normalize(windows.gather(index))["frames"]
        error, signal = model.errors(rows, generator)
        errors.append(error.cpu())
        signals.append(signal)
    merged = {
        name: torch.cat([signal[name] for signal in signals]).cpu().numpy() for name in signals[0]
    }
    return PredictionErrors(torch.cat(errors).numpy(), merged)


def repetition_errors(model: VideoModel, windows: FrameWindows) -> np.ndarray:
    """Return errors (N, S) of repeating the last frame."""
    rows = model.normalize(windows.gather(torch.arange(len(windows))))["frames"]
    return mean_square(model.changes(rows)).cpu().numpy()


def clip_means(errors: np.ndarray, windows: FrameWindows) -> np.ndarray:
    """Average the errors (N, S) of windows over each clip that has a window."""
    clip = windows.clip.numpy()
    return np.array([errors[clip == i].mean() for i in np.unique(clip)])


def hard_frame_auroc(runs: Sequence[PredictionErrors], windows: FrameWindows) -> dict[str, Any]:
    """Measure how well each signal detects hard frames.

    Args:
        runs: errors and signals of each training run.

    Returns:
        Name of a signal -> area under the ROC curve, see `auroc`.
    """
    clip = np.repeat(windows.clip.numpy(), runs[0].errors.shape[1])
    hard = [run.errors.ravel() > np.quantile(run.errors, 1 - HARD_SHARE) for run in runs]
    return {
        name: auroc(
            [
                Samples(run.signals[name].ravel(), label, clip)
                for run, label in zip(runs, hard, strict=True)
            ]
        )
        for name in runs[0].signals
    }
