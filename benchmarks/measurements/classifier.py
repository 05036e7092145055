"""A classifier of CIFAR-10, which measures generated images by its features and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.device import DEVICE
from ebt_policy.image.data import Crops, ImageDataset
from ebt_policy.models.base import Domain, Model
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.trainer import Trainer

WIDTHS = (32, 64, 128)
TRAINING = TrainConfig(
    steps=4000, minutes=None, batch_size=64, lr=2e-3, weight_decay=0.05, warmup_steps=200,
    max_grad_norm=1.0, ema_power=0.75, mixed_precision="no", compile=False,
    checkpoint_every=1000, eval_every=0, log_every=50,
)  # fmt: skip


class ImageClassifier(Model):
    """Classifier with three stages of two convolutions; every stage halves the side."""

    name = "classifier"
    domain = Domain.IMAGE

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *WIDTHS), WIDTHS, strict=False):
            for i in range(2):
                layers += [nn.Conv2d(width if i else before, width, 3, padding=1)]
                layers += [nn.GroupNorm(8, width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1], classes)
        self.num_features = WIDTHS[-1]  # read by torchmetrics
        self.config = {"classes": classes}

    @property
    def keys(self) -> tuple[str, ...]:
        return ("image", "label")

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, "image": batch["image"].permute(0, 3, 1, 2)}

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"down": torch.randint(-4, 5, ()), "right": torch.randint(-4, 5, ())}

    def forward(self, batch: dict[str, Any]) -> Any:
        """Return the loss of a batch, or the features (B, F) of images (B, 3, S, S) as bytes."""
        if isinstance(batch, Tensor):
            return self.features(batch)
        shifted = batch["image"].roll(
            (int(batch["noise"]["down"]), int(batch["noise"]["right"])), (2, 3)
        )
        return F.cross_entropy(self.head(self.features(shifted)), batch["label"]), {}

    def features(self, images: Tensor) -> Tensor:
        return self.stages(images.float() / 127.5 - 1).mean((2, 3))

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        return cls(config["classes"])


def train_classifier(dataset: ImageDataset, folder: Path) -> ImageClassifier:
    """Train a classifier in a run folder, or resume its training there, and return it."""
    torch.manual_seed(0)
    crops = Crops(dataset.splits["train"], 32, device=DEVICE)
    trainer = Trainer(
        ImageClassifier(len(dataset.classes)), crops, TRAINING, folder,
        seed=0, accelerator=Accelerator(cpu=DEVICE.type == "cpu"),
    )  # fmt: skip
    trainer.resume()
    trainer.fit()
    return ImageClassifier.from_checkpoint(folder, DEVICE)
