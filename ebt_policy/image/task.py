"""Training task of image models: load images, train, validate and evaluate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.image_metrics import psnr
from ebt_policy.image.data import Crops, ImageDataset
from ebt_policy.image.datasets import load_images
from ebt_policy.image.model import IMAGE_MODELS, ImageModel, build_image_model
from ebt_policy.image.patch_transformer import LEVELS, ImageShape
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.task import TrainingSetup, TrainingTask

HELD_OUT = 1024  # held-out crops for the validation loss
DENOISED = 64  # held-out crops that are denoised during training


@dataclass(frozen=True)
class ImageTaskConfig:
    """The section ``task`` of an image model's configuration.

    Args:
        name: always ``image``.
        images, path, channels, skip_unreadable: see `load_images`.
        side, patch, max_noise_level: see `ImageShape`.
        classes: whether the model is conditioned on the class of an image.
        exclude_classes: names of classes to leave out of training.
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
        self.shape(0)  # Invalid values raise an error before any image is read.

    def shape(self, classes: int) -> ImageShape:
        return ImageShape(self.side, self.channels, self.patch, self.max_noise_level, classes)


@dataclass(frozen=True)
class ImageEvaluation:
    """The section ``evaluation``.

    Args:
        final: whether to evaluate the trained model at the end.
    """

    final: bool


class ImageTrainingTask(TrainingTask[ImageDataset]):
    """Training of an image model, validated and evaluated on noisy images."""

    models = IMAGE_MODELS

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        super().__init__(config, train)
        self.task = options(ImageTaskConfig, config["task"], "task")
        self.evaluation = options(ImageEvaluation, config["evaluation"], "evaluation")

    def load_data(self) -> ImageDataset:
        task = self.task
        dataset = load_images(
            task.images, task.path, task.channels, skip_unreadable=task.skip_unreadable,
            smallest=task.side,
        )  # fmt: skip
        if "train" not in dataset.splits:
            raise ConfigError(
                f"task.images={task.images} has no training split; train on other images."
            )
        if self.evaluation.final and dataset.splits.keys() == {"train"}:
            raise ConfigError(
                f"{dataset.name} has a single image and none to evaluate on; add images, or "
                "set evaluation.final=false."
            )
        if task.classes and not dataset.classes:
            raise ConfigError(f"{dataset.name} has no classes; set task.classes=false.")
        return dataset.exclude_classes(task.exclude_classes)

    def describe(self, data: ImageDataset) -> str:
        return f"{data.name}: {len(data.splits['train']):,} images, {data.origin}."

    def build(self, data: ImageDataset, device: torch.device) -> TrainingSetup:
        task = self.task
        crops = Crops(data.splits["train"], task.side, device=device)
        held_out, validate = None, None
        if "validation" in data.splits:
            held_out = Crops(
                data.splits["validation"], task.side, max_crops=HELD_OUT, device=device
            )
            rows = held_out.gather(torch.linspace(0, len(held_out) - 1, DENOISED).long())
            if self.train.eval_every > 0 and task.max_noise_level < LEVELS:
                validate = partial(self._denoising_metrics, rows=rows)
        torch.manual_seed(self.config["seed"])
        classes = len(data.classes) if task.classes else 0
        model = build_image_model({**self.config, "shape": asdict(task.shape(classes))})
        # The evaluation loads the images again by this name.
        name = task.images or (None if task.path else data.name)
        model.config["task"] = {**self.config["task"], "images": name}
        return TrainingSetup(model.to(device), crops, held_out, f"{len(crops):,} crops", validate)

    def _denoising_metrics(self, model: ImageModel, rows: dict[str, Tensor]) -> dict[str, float]:
        clean = model.normalize(rows)["image"]
        generator = torch.Generator().manual_seed(0)
        noisy = model.add_noise(clean, self.task.max_noise_level, generator)
        labels = rows["label"] if model.shape.classes else None
        result = model.denoise(noisy, self.task.max_noise_level, labels, generator)
        return {"held_out_psnr": float(psnr(result.images, clean).mean())}

    def evaluate(
        self, data: ImageDataset, run_dir: Path, device: torch.device, command: str
    ) -> None:
        # This module draws figures and is slow to import.
        from ebt_policy.image.evaluate import DenoisingConfig, evaluate_images

        if self.evaluation.final:
            evaluate_images(
                [str(run_dir)], DenoisingConfig(),
                output=run_dir / "evaluation", device=device, command=command,
            )  # fmt: skip
