"""Training task of video models, and of autoencoders of frames."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from omegaconf import OmegaConf

from ebt_policy.config import options
from ebt_policy.models.base import CheckpointError, checkpoint_folder
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.task import TrainingSetup, TrainingTask
from ebt_policy.video.autoencoder import frame_features
from ebt_policy.video.data import PIECES, Frames, FrameWindows, VideoDataset, VideoError
from ebt_policy.video.datasets import VideoTaskConfig, load_videos
from ebt_policy.video.feature_cache import encode_clips
from ebt_policy.video.model import VIDEO_MODELS, build_video_model

DEFAULT_AUTOENCODER_STEPS = VideoTaskConfig.autoencoder_steps
# Options of the automatically trained autoencoder.
AUTOENCODER_DEFAULTS = {
    "minutes": None, "batch_size": 16, "lr": 2e-3, "warmup_steps": 100,
    "compile": False, "checkpoint_every": 500,
}  # fmt: skip
log = logging.getLogger(__name__)
AUTOENCODER_MODEL: Any = OmegaConf.to_container(
    OmegaConf.create(
        resources.files("ebt_policy.configs").joinpath("model/autoencoder.yaml").read_text()
    )
)


@dataclass(frozen=True)
class VideoEvaluation:
    """The section ``evaluation``.

    Args:
        final: whether to evaluate the trained model at the end.
    """

    final: bool


class VideoTrainingData(NamedTuple):
    """Clips, and the name of the encoder of their features.

    Attributes:
        features: see `frame_features`; None for an autoencoder, which is trained on the frames.
    """

    dataset: VideoDataset
    features: str | None


class VideoTrainingTask(TrainingTask[VideoTrainingData]):
    """Training of a video model, or of an autoencoder of frames."""

    models = VIDEO_MODELS

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        super().__init__(config, train)
        self.task = options(VideoTaskConfig, config["task"], "task")
        self.evaluation = options(VideoEvaluation, config["evaluation"], "evaluation")
        self.is_autoencoder = config["model"]["name"] == "autoencoder"

    def load_data(self) -> VideoTrainingData:
        dataset = load_videos(self.task)
        if self.is_autoencoder:
            return VideoTrainingData(dataset, None)
        _check_lengths(dataset, self.task.context)
        features = self.task.features
        if features is None:
            features = self._autoencoder_folder(dataset)
        return VideoTrainingData(dataset, features)

    def _autoencoder_folder(self, dataset: VideoDataset) -> str:
        """Return the run folder of the autoencoder for these clips and this size of frames."""
        digest = sha256(b"".join(clip.frames.tobytes() for clip in dataset.splits["train"]))
        name = f"{dataset.name}-{self.task.height}x{self.task.width}-{digest.hexdigest()[:6]}"
        if self.task.autoencoder_steps != DEFAULT_AUTOENCODER_STEPS:
            name += f"-{self.task.autoencoder_steps}"
        return str(Path(self.config["run_dir"]).parent / f"autoencoder-{name}")

    def describe(self, data: VideoTrainingData) -> str:
        dataset = data.dataset
        clips = dataset.splits["train"]
        count = sum(len(clip.frames) for clip in clips)
        return f"{dataset.name}: {len(clips)} clips, {count:,} frames, {dataset.origin}."

    def prerequisite(self, data: VideoTrainingData) -> dict[str, Any] | None:
        """Return the configuration of the autoencoder, if no features are given."""
        if self.task.features is not None or data.features is None:
            return None
        try:
            checkpoint = checkpoint_folder(data.features)
            if int(checkpoint.name.removeprefix("step_")) >= self.task.autoencoder_steps:
                return None
        except CheckpointError:
            pass  # There is no checkpoint yet.
        if PartialState().is_main_process:
            log.info(
                "task.features is not given: training an autoencoder for %d updates in %s first "
                "(task.autoencoder_steps)", self.task.autoencoder_steps, data.features,
            )  # fmt: skip
        steps = self.task.autoencoder_steps
        return {
            **self.config, "model": AUTOENCODER_MODEL, "objective": None, "seed": 0,
            "tracker": "off",
            # All models share one autoencoder, so these options must not depend on the model.
            "task": {**self.config["task"], "context": 1}, "size": {"name": "none"},
            "run_dir": data.features, "resume": True,
            "train": {**self.config["train"], **AUTOENCODER_DEFAULTS, "steps": steps},
        }  # fmt: skip

    def build(self, data: VideoTrainingData, device: torch.device) -> TrainingSetup:
        splits, context = data.dataset.splits, self.task.context
        if data.features is None:
            torch.manual_seed(self.config["seed"])
            model = build_video_model(self.config)
            frames, held_out = (Frames(splits[p], device) for p in ("train", "validation"))
            return TrainingSetup(model.to(device), frames, held_out, f"{len(frames):,} frames")
        encoder = frame_features(data.features, device)
        clips = encode_clips(splits, encoder)
        windows = FrameWindows(clips["train"], context, device=device)
        held_out = FrameWindows(clips["validation"], context, stride=context, device=device)
        features = windows.frames.shape[1]
        torch.manual_seed(self.config["seed"])
        model = build_video_model({**self.config, "features": features})
        model.fit(clips["train"])
        model.encoder = encoder.digest
        # The evaluation loads videos and features again by these names.
        task = {**asdict(self.task), "features": data.features}
        if task["path"] is None:
            task["videos"] = data.dataset.name
        model.config["task"] = task
        note = f"{len(windows):,} windows, {features} features per frame"
        return TrainingSetup(model.to(device), windows, held_out, note)

    def evaluate(
        self, data: VideoTrainingData, run_dir: Path, device: torch.device, command: str
    ) -> None:
        # This module draws figures and is slow to import.
        from ebt_policy.video.evaluate import evaluate_autoencoder, evaluate_video

        if not self.evaluation.final:
            return
        output = run_dir / "evaluation"
        if data.features is None:
            evaluate_autoencoder(run_dir, data.dataset, output, device)
        else:
            evaluate_video([str(run_dir)], output=output, device=device, command=command)


def _check_lengths(footage: VideoDataset, context: int) -> None:
    """Check before training that each split has a clip that is longer than the context.

    Raises:
        VideoError: a split has no such clip.
    """
    for split, clips in footage.splits.items():
        longest = max(len(clip.frames) for clip in clips)
        if longest <= context:
            raise VideoError(
                f"the {split} clips of {footage.name} have at most {longest} frames, and "
                f"task.context={context} needs {context + 1}. Lower task.context or "
                f"task.frame_stride, or add videos (if there are fewer than {PIECES}, each is cut "
                f"into {PIECES} clips)."
            )
