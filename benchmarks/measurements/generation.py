"""Generation of images by class: Fréchet distance, and accuracy of a classifier on the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.device import DEVICE
from benchmarks.measurements.classifier import ImageClassifier, train_classifier
from benchmarks.study import StudyContext, run_name
from benchmarks.tables.images import GENERATOR_NAMES
from ebt_policy.evaluation.entries import load_entries
from ebt_policy.evaluation.image_figures import ImageRow, image_grid, save_png
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.statistics import success_rate
from ebt_policy.image.data import ImageDataset
from ebt_policy.image.datasets import load_images
from ebt_policy.image.model import LEVELS, ImageModel

IMAGES_PER_CLASS = 2  # in the figure
BATCH = 250


def generation(context: StudyContext) -> dict[str, Any]:
    """Measure Fréchet distances to the test images and accuracies of all entries; draw images.

    The study has the options ``images`` (number of images of each training run) and ``features``
    (``classifier`` or ``inception``, the network whose features the distance uses).
    """
    options = context.options
    dataset = load_images("cifar10", None, 3)
    classifier = train_classifier(dataset, context.folder / "classifier")
    fid = fit_distance(
        classifier if options.features == "classifier" else 2048, _pixels(dataset, "test")
    )
    result: dict[str, Any] = {
        "entries": [],
        "real": _other_real_images(dataset, fid, classifier, options.images),
        "features": options.features, "images": options.images, "updates": options.updates,
        "device": DEVICE.type, "command": context.command,
    }  # fmt: skip
    count, pictures = len(dataset.classes), {}
    entries = load_entries(ImageModel, context.checkpoints(), DEVICE)
    with progress_bar() as bar:
        task = bar.add_task("images", total=sum(len(entry.models) for entry in entries))
        for entry, loaded in zip(context.part.entries, entries, strict=True):
            models = loaded.models
            distances, correct = [], []
            for model in models:
                images, labels = generate(model, options.images, count)
                distances.append(distance(fid, images))
                correct.append(is_correct(classifier, images, labels))
                bar.advance(task)
                if model is models[0]:  # The last entry of a model has the most passes.
                    pictures[run_name(entry)] = images[: IMAGES_PER_CLASS * count]
            result["entries"].append(
                {
                    "model": run_name(entry), "params": models[0].parameter_count,
                    "steps": models[0].inference.steps,
                    "distance": distances, "accuracy": success_rate(np.stack(correct)),
                }
            )  # fmt: skip
    rows = [
        ImageRow(GENERATOR_NAMES[name], list(row), dataset.classes)
        for name, images in pictures.items()
        for row in (images.float() / 127.5 - 1).unflatten(0, (IMAGES_PER_CLASS, -1))
    ]
    context.assets.mkdir(parents=True, exist_ok=True)
    save_png(image_grid(rows), context.assets / "generation.png")
    return result


def _pixels(dataset: ImageDataset, split: str) -> Tensor:
    return torch.from_numpy(np.stack(dataset.splits[split].pixels)).permute(0, 3, 1, 2)


def _other_real_images(
    dataset: ImageDataset, fid: FrechetInceptionDistance, classifier: ImageClassifier, count: int
) -> dict[str, float]:
    """Measure validation images, which are in no training set, as a reference."""
    pixels = _pixels(dataset, "validation")
    index = torch.linspace(0, len(pixels) - 1, min(count, len(pixels))).long()
    labels = torch.tensor(dataset.splits["validation"].labels)[index]
    correct = is_correct(classifier, pixels[index], labels)
    return {"distance": distance(fid, pixels[index]), "accuracy": float(correct.mean())}


def generate(model: ImageModel, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return images as bytes (N, C, S, S), equally many of each class, and their classes (N,)."""
    generator = torch.Generator().manual_seed(0)
    shape = model.shape
    labels = torch.arange(count) % classes
    noise = torch.randn(count, shape.channels, shape.side, shape.side, generator=generator)
    batches = [
        model.denoise(x.to(DEVICE), LEVELS, label.to(DEVICE), generator).images.cpu()
        for x, label in zip(noise.split(BATCH), labels.split(BATCH), strict=True)
    ]
    images = ((torch.cat(batches) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return images, labels


def fit_distance(features: Any, real: Tensor) -> FrechetInceptionDistance:
    """Return a metric of the Fréchet distance to real images, given as bytes (N, C, H, W).

    Args:
        features: the network of the features, or 2048 for Inception.
    """
    _, channels, height, width = real.shape
    fid = FrechetInceptionDistance(
        features, reset_real_features=False, input_img_size=(channels, height, width)
    ).to(DEVICE)
    for x in real.split(BATCH):
        fid.update(x.to(DEVICE), real=True)
    return fid


def distance(fid: FrechetInceptionDistance, images: Tensor) -> float:
    """Return the distance of images, given as bytes (N, C, H, W), to the real images."""
    for x in images.split(BATCH):
        fid.update(x.to(DEVICE), real=False)
    value = float(fid.compute())
    fid.reset()
    return value


def is_correct(classifier: ImageClassifier, images: Tensor, labels: Tensor) -> np.ndarray:
    """Return whether the predicted class of each image is its label, (N,)."""
    with torch.no_grad():
        predicted = [
            classifier.head(classifier.features(x.to(DEVICE))).argmax(1).cpu()
            for x in images.split(BATCH)
        ]
    return (torch.cat(predicted) == labels).float().numpy()
