"""Training a model of images, and what it makes of noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.image_metrics import psnr
from ebt_policy.image.data import Crops, ImageDataset
from ebt_policy.image.datasets import load_images
from ebt_policy.image.evaluate import RestoringOptions, evaluate_images
from ebt_policy.image.model import ImageModel, build_image_model
from ebt_policy.image.patch_transformer import LEVELS, ImageShape
from ebt_policy.training.task import TrainingSetup, TrainingTask
from ebt_policy.training.trainer import TrainConfig

HELD_OUT = 1024  # crops whose loss is seen at checkpoints
TRIED = 64  # of them, restored while training


@dataclass(frozen=True)
class ImageTaskConfig:
    """The section ``task`` of an image model's configuration.

    Args:
        name: image.
        images, path, channels, skip_unreadable: see `load_images`.
        side, patch, max_noise_level: see `ImageShape`.
        classes: tell the model the class of an image.
        exclude_classes: names of classes that are not learned from.
    """

    name: str
    images: str | None
    path: str | list[str] | None
    channels: int
    skip_unreadable: bool
    side: int
    patch: int
    max_noise_level: int
    classes: bool
    exclude_classes: list[str]

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"task.channels must be 3 or 1, got {self.channels}.")
        self.shape(0)  # says what is wrong before any image is read

    def shape(self, classes: int) -> ImageShape:
        return ImageShape(self.side, self.channels, self.patch, self.max_noise_level, classes)


@dataclass(frozen=True)
class ImageEvaluation:
    """The section ``evaluation``: whether the trained model is evaluated at the end."""

    final: bool


class ImageTrainingTask(TrainingTask):
    """See `TrainingTask`."""

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        super().__init__(config, train)
        self.task = options(ImageTaskConfig, config["task"], "task")
        self.evaluation = options(ImageEvaluation, config["evaluation"], "evaluation")
        self.gallery: ImageDataset | None = None
        self.tried: dict[str, Tensor] = {}

    def fetch(self) -> str:
        task = self.task
        self.gallery = load_images(
            task.images, task.path, task.channels, skip_unreadable=task.skip_unreadable,
            smallest=task.side,
        )  # fmt: skip
        if "train" not in self.gallery.parts:
            raise ConfigError(f"task.images={task.images} is for evaluation; train on others.")
        if self.evaluation.final and self.gallery.parts.keys() == {"train"}:
            raise ConfigError(
                f"{self.gallery.name} has a single image, none to evaluate on; give more, or "
                "set evaluation.final=false."
            )
        if task.classes and not self.gallery.classes:
            raise ConfigError(f"{self.gallery.name} has no classes; leave task.classes=false.")
        self.gallery = self.gallery.exclude_classes(task.exclude_classes)
        count = len(self.gallery.parts["train"])
        return f"{self.gallery.name}: {count:,} images, {self.gallery.origin}."

    def build(self, device: torch.device) -> TrainingSetup:
        task, gallery = self.task, self.gallery
        assert gallery is not None
        crops = Crops(gallery.parts["train"], task.side, device=device)
        held_out = None
        if "validation" in gallery.parts:
            validation = gallery.parts["validation"]
            held_out = Crops(validation, task.side, most=HELD_OUT, device=device)
            self.tried = held_out.gather(torch.linspace(0, len(held_out) - 1, TRIED).long())
        torch.manual_seed(self.config["seed"])
        classes = len(gallery.classes) if task.classes else 0
        model = build_image_model({**self.config, "shape": asdict(task.shape(classes))})
        # Where the images are found again, and what they were called, is for the evaluation.
        model.config["task"] = {**self.config["task"], "images": task.images or
                                (None if task.path else gallery.name)}  # fmt: skip
        return TrainingSetup(model.to(device), crops, held_out, f"{len(crops):,} crops")

    @property
    def tries_out(self) -> bool:
        return super().tries_out and self.task.max_noise_level < LEVELS

    def tryout(self, model: ImageModel) -> dict[str, float]:
        if not self.tried:
            return {}
        clean = model.normalize(self.tried)["image"]
        generator = torch.Generator().manual_seed(0)
        noisy = model.add_noise(clean, self.task.max_noise_level, generator)
        labels = self.tried["label"] if model.shape.classes else None
        found = model.denoise(noisy, self.task.max_noise_level, labels, generator)
        return {"held_out_psnr": float(psnr(found.images, clean).mean())}

    def evaluate(self, run_dir: Path, device: torch.device, command: str) -> None:
        if self.evaluation.final:
            what: Any = {"output": run_dir / "evaluation", "device": device, "command": command}
            evaluate_images([str(run_dir)], RestoringOptions(), **what)
