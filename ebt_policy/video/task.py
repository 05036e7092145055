"""Training a model of video, or the autoencoder of its frames."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from omegaconf import OmegaConf
from rich.console import Console

from ebt_policy.config import options
from ebt_policy.models.base import CheckpointError, checkpoint_folder
from ebt_policy.training.task import TrainingSetup, TrainingTask
from ebt_policy.training.trainer import TrainConfig
from ebt_policy.video.autoencoder import frame_features
from ebt_policy.video.data import PIECES, Frames, FrameWindows, VideoDataset, VideoError
from ebt_policy.video.datasets import VideoTaskConfig, load_videos
from ebt_policy.video.evaluate import evaluate_autoencoder, evaluate_video
from ebt_policy.video.feature_cache import encode_clips
from ebt_policy.video.model import build_video_model

# How the autoencoder is trained that nobody asked for.
FIRST = {"steps": 2000, "minutes": None, "batch_size": 16, "lr": 2e-3, "warmup_steps": 100,
         "compile": False, "checkpoint_every": 500}  # fmt: skip
FIRST_MODEL: Any = OmegaConf.to_container(
    OmegaConf.create(
        resources.files("ebt_policy.configs").joinpath("model/autoencoder.yaml").read_text()
    )
)


@dataclass(frozen=True)
class VideoEvaluation:
    """The section ``evaluation``: whether the trained model is evaluated at the end."""

    final: bool


class VideoTrainingTask(TrainingTask):
    """See `TrainingTask`."""

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        super().__init__(config, train)
        self.task = options(VideoTaskConfig, config["task"], "task")
        self.evaluation = options(VideoEvaluation, config["evaluation"], "evaluation")
        self.of_frames = config["model"]["name"] == "autoencoder"
        self.footage: VideoDataset | None = None
        self.features = self.task.features

    def fetch(self) -> str:
        self.footage = load_videos(self.task)
        if not self.of_frames:
            _check_lengths(self.footage, self.task.context)
        clips = self.footage.parts["train"]
        count = sum(len(clip.frames) for clip in clips)
        return f"{self.footage.name}: {len(clips)} clips, {count:,} frames, {self.footage.origin}."

    def first(self) -> dict[str, Any] | None:
        """An autoencoder for this footage and size of frames, where no features are given."""
        if self.features is not None or self.of_frames:
            return None
        assert self.footage is not None
        task = self.task
        folder = Path(self.config["run_dir"]).parent
        seen = sha256(b"".join(clip.frames.tobytes() for clip in self.footage.parts["train"]))
        name = f"{self.footage.name}-{task.height}x{task.width}-{seen.hexdigest()[:6]}"
        folder /= f"autoencoder-{name}"
        self.features = str(folder)
        try:
            if int(checkpoint_folder(folder).name.removeprefix("step_")) >= FIRST["steps"]:
                return None
        except CheckpointError:
            pass  # none yet
        if PartialState().is_main_process:
            Console().print(f"task.features is not given: first an autoencoder, in {folder}")
        return {
            **self.config, "model": FIRST_MODEL, "objective": None, "seed": 0, "wandb": "off",
            # The same, whoever asks for it first.
            "task": {**self.config["task"], "context": 1}, "size": {"name": "none"},
            "run_dir": str(folder), "resume": True,
            "train": {**self.config["train"], **FIRST},
        }  # fmt: skip

    def build(self, device: torch.device) -> TrainingSetup:
        assert self.footage is not None
        parts, context = self.footage.parts, self.task.context
        if self.of_frames:
            torch.manual_seed(self.config["seed"])
            model = build_video_model(self.config)
            frames, held_out = (Frames(parts[p], device) for p in ("train", "validation"))
            return TrainingSetup(model.to(device), frames, held_out, f"{len(frames):,} frames")
        assert self.features is not None
        encoder = frame_features(self.features, device)
        clips = encode_clips(parts, encoder)
        data = FrameWindows(clips["train"], context, device=device)
        held_out = FrameWindows(clips["validation"], context, stride=context, device=device)
        features = data.frames.shape[1]
        torch.manual_seed(self.config["seed"])
        model = build_video_model({**self.config, "features": features})
        model.fit(clips["train"])
        model.encoder = encoder.digest
        # Where videos and features are found again is for the evaluation.
        task = {**asdict(self.task), "features": str(self.features)}
        if task["path"] is None:
            task["videos"] = self.footage.name
        model.config["task"] = task
        note = f"{len(data):,} windows of {features} features a frame"
        return TrainingSetup(model.to(device), data, held_out, note)

    @property
    def tries_out(self) -> bool:
        return False  # the loss on validation windows says it

    def evaluate(self, run_dir: Path, device: torch.device, command: str) -> None:
        if self.evaluation.final:
            assert self.footage is not None
            output = run_dir / "evaluation"
            if self.of_frames:
                evaluate_autoencoder(run_dir, self.footage, output, device)
            else:
                evaluate_video([str(run_dir)], output=output, device=device, command=command)


def _check_lengths(footage: VideoDataset, context: int) -> None:
    """Before anything is trained.

    Raises:
        VideoError: a part has no clip that is longer than the context.
    """
    for part, clips in footage.parts.items():
        longest = max(len(clip.frames) for clip in clips)
        if longest <= context:
            raise VideoError(
                f"the clips of {footage.name} for {part} have {longest} frames at most; a context "
                f"of {context} needs {context + 1}. Lower task.context or task.frame_stride, or "
                f"give more (fewer than {PIECES} videos are cut into {PIECES} each)."
            )
