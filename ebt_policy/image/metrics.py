"""Metrics of image models on held-out images, with the same noise for all models.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.image_metrics import compute_metrics, compute_psnr
from ebt_policy.image.data import ImageDataset, ImageSplit
from ebt_policy.image.datasets import NAMES, load_images
from ebt_policy.image.model import EnergyImageModel, ImageModel
from ebt_policy.image.tiling import denoise_tiled

MAX_IMAGES = 200  # If a set has more images, this many evenly spaced ones are used.
WINDOW = 128  # pixels, side of the central crop that is evaluated, as in the EBT paper


class EvalSet(NamedTuple):
    """Images to denoise.

    Attributes:
        images: (C, H, W) in [-1, 1] each.
        labels: class of each image.
        metadata: name, split and number of images.
        digest: a short hash of the images.
    """

    images: list[Tensor]
    labels: list[int]
    metadata: dict[str, Any]
    digest: str


@lru_cache(maxsize=1)  # Most entries use the same data set.
def _load_dataset(
    name: str | None, path: str | tuple[str, ...] | None, channels: int, skip_unreadable: bool
) -> ImageDataset:
    return load_images(name, path, channels, skip_unreadable=skip_unreadable)


def load_eval_set(model: ImageModel, images: str | None, device: torch.device) -> EvalSet:
    """Load central crops of held-out images of the model's own data set, or of other images.

    Args:
        images: name or path of other images; None for the data set that the model was trained on.

    Raises:
        ImageError: there are no images.
        ConfigError: there are only training images, or the images lack the classes that the model
            is conditioned on.
    """
    task = model.config["task"]
    name, path = task["images"], task["path"]
    path = tuple(path) if isinstance(path, list) else path
    if images is not None:
        name, path = (None, images) if Path(images).exists() else (images, None)
        if name is not None and name not in NAMES:
            available = ", ".join(NAMES)
            raise ConfigError(f"images={images} is neither a path nor one of {available}.")
    dataset = _load_dataset(name, path, model.shape.channels, task["skip_unreadable"])
    if model.shape.classes not in (0, len(dataset.classes)):
        raise ConfigError(
            f"the model is conditioned on {model.shape.classes} classes, and {dataset.name} has "
            f"{len(dataset.classes) or 'none'}; choose other images with images=."
        )
    split_name = next(name for name in ("test", "validation", "train") if name in dataset.splits)
    split = dataset.splits[split_name]
    if path is not None and images is not None:  # All images of another folder are used.
        split_name, split = "all", ImageSplit()
        for other in dataset.splits.values():
            split.pixels.extend(other.pixels)
            split.labels.extend(other.labels)
    if split_name == "train":
        raise ConfigError(f"{dataset.name} has only training images; choose others with images=.")
    count = min(MAX_IMAGES, len(split))
    indices = np.unique(np.linspace(0, len(split) - 1, count).round().astype(int))
    middles = []
    for i in indices:
        pixels = split.pixels[i]
        top, left = (max(0, (side - WINDOW) // 2) for side in pixels.shape[:2])
        middle = torch.tensor(pixels[top : top + WINDOW, left : left + WINDOW])
        middles.append(middle.permute(2, 0, 1).float() / 127.5 - 1)
    digest = hashlib.sha256(str([image.shape for image in middles]).encode())
    for image in middles:
        digest.update(image.numpy().tobytes())
    return EvalSet(
        [image.to(device) for image in middles],
        [split.labels[i] for i in indices],
        {"images": dataset.name, "part": split_name, "count": len(indices)},
        digest.hexdigest()[:16],
    )


def noisy_versions(model: ImageModel, images: Sequence[Tensor], noise: int) -> list[Tensor]:
    """Add noise of one level to images; every model gets the same noise."""
    return [
        model.add_noise(image[None], noise, torch.Generator().manual_seed(i))[0]
        for i, image in enumerate(images)
    ]


MAX_STEP_FACTOR = 4  # multiple of the number of steps that a model predicts with


def denoising_metrics(
    model: ImageModel, noisy: Sequence[Tensor], level: int, eval_set: EvalSet
) -> dict[str, list[float]]:
    """Return the metrics of each denoised image, and the number of steps used for it."""
    generator = torch.Generator().manual_seed(0)
    results = denoise_tiled(model, noisy, level, eval_set.labels, generator, follow=False)
    metrics = compute_metrics([result.images for result in results], eval_set.images)
    steps = [float(result.steps_used) for result in results]
    return {"steps_used": steps} | {name: values.tolist() for name, values in metrics.items()}


def descent_metrics(
    model: EnergyImageModel, noisy: Sequence[Tensor], level: int, eval_set: EvalSet
) -> dict[str, Any]:
    """Measure a descent that is longer than the model's own.

    Returns:
        ``psnr`` (K + 1, N) in dB; ``energy`` (K + 1,), the mean energy minus its final value, or
        None for a model without an energy.
    """
    inference = model.inference
    model.configure_inference(steps=MAX_STEP_FACTOR * inference.steps, num_candidates=1)
    generator = torch.Generator().manual_seed(0)
    results = denoise_tiled(model, noisy, level, eval_set.labels, generator)
    model.configure_inference(**asdict(inference))
    steps = zip(*(result.path for result in results), strict=True)
    ratios = [
        compute_psnr([x.clamp(-1, 1) for x in images], eval_set.images).tolist() for images in steps
    ]
    above = [r.energies - r.energies[-1] for r in results if r.energies is not None]
    return {"psnr": ratios, "energy": torch.stack(above).mean(0).tolist() if above else None}
