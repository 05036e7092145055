"""Frozen denoisers on CIFAR-10: linear probes and out-of-distribution detection.

The models are trained without labels and without two of the classes.

- How accurate is a linear probe on their features, compared with a probe on the pixels or on an
  untrained network (Gladstone et al. 2025, "Energy-Based Transformers", section 4.3)?
- How well do the energy and the reconstruction error detect the two classes, crops of CBSD68, and
  uniform noise? Is a signal that is calibrated on half of the images reliable on the other half?
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.device import DEVICE
from benchmarks.measurements.linear_probe import linear_probe, probe_model
from benchmarks.measurements.ood_detection import (
    ImageGroup,
    detection_quality,
    model_scores,
    roughness,
)
from benchmarks.study import StudyContext, run_name
from ebt_policy.evaluation.entries import load_entries
from ebt_policy.evaluation.image_figures import energy_maps, save_png
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.statistics import paired_difference, success_rate
from ebt_policy.image.data import Crops, ImageDataset
from ebt_policy.image.datasets import load_images
from ebt_policy.image.model import EnergyImageModel, ImageModel, build_image_model

EXCLUDED_CLASSES = ("frog", "truck")
SPLITS = ("train", "validation", "test")
GROUP_SIZE = 2000  # maximum number of images in a group
REFERENCE = "dit"  # The accuracy of all others is compared with this model.
console = Console()


def representation(context: StudyContext) -> dict[str, Any]:
    """Measure the accuracy of probes and the quality of detectors; draw energy maps."""
    entries = load_entries(ImageModel, context.checkpoints(), DEVICE)
    models: dict[str, list[Any]] = {run_name(entry.name): entry.models for entry in entries}
    first = models["ebt"][0]
    dataset = load_images("cifar10", None, first.shape.channels)
    groups = image_groups(dataset, first)
    result: dict[str, Any] = {
        "probe": probe_all(models, dataset),
        "detected": detect_all(models, groups),
        "params": first.parameter_count,
        "updates": context.options.updates,
        "seeds": context.options.seeds,
        "left_out": list(EXCLUDED_CLASSES),
        "device": DEVICE.type,
        "command": context.command,
    }
    draw_energy_maps(first, groups, context.output / "energy_maps.png")
    return result


def probe_all(models: Mapping[str, list[Any]], dataset: ImageDataset) -> dict[str, Any]:
    """Probe every model, an untrained network and the pixels."""
    first = models["ebt"][0]
    rows = {split: labelled_images(dataset, split, first) for split in SPLITS}
    images = {split: x for split, (x, _) in rows.items()}
    labels = {split: y for split, (_, y) in rows.items()}
    torch.manual_seed(0)
    untrained = build_image_model({**first.config, "shape": vars(first.shape)}).to(DEVICE)
    result: dict[str, Any] = {}
    correct: dict[str, np.ndarray] = {}
    with progress_bar() as bar:
        task = bar.add_task("probes", total=sum(map(len, models.values())) + 2)
        for name, runs in {**models, "untrained": [untrained]}.items():
            probes = []
            for model in runs:
                probes.append(probe_model(model, images, labels))
                bar.advance(task)
            correct[name] = np.stack([test for test, _ in probes])
            result[name] = {"noise": [level for _, level in probes]}
        correct["pixels"], _ = linear_probe(lambda split: images[split].flatten(1).numpy(), labels)
        result["pixels"] = {}
        bar.advance(task)
    for name, probe in result.items():
        probe["accuracy"] = success_rate(correct[name])
        if name != REFERENCE:
            probe["ahead"] = paired_difference(correct[name], correct[REFERENCE])
    return result


def detect_all(models: Mapping[str, list[Any]], groups: Mapping[str, ImageGroup]) -> dict[str, Any]:
    """Measure the signals of every model, and the roughness of the pixels."""
    result: dict[str, Any] = {}
    with progress_bar() as bar:
        task = bar.add_task("detectors", total=sum(map(len, models.values())))
        for name, runs in models.items():
            scores = []
            for model in runs:
                scores.append({k: model_scores(model, group.images) for k, group in groups.items()})
                bar.advance(task)
            result[name] = detection_quality(scores, groups)
    pixels = {name: {"roughness": roughness(group.images)} for name, group in groups.items()}
    result["pixels"] = detection_quality([pixels], groups)
    return result


def labelled_images(
    dataset: ImageDataset, split: str, model: ImageModel
) -> tuple[Tensor, np.ndarray]:
    """Return the images (N, C, S, S) of a split in [-1, 1], and their classes (N,)."""
    image_split = dataset.splits[split]
    pixels = torch.from_numpy(np.stack(image_split.pixels))
    rows = model.normalize({"image": pixels, "label": torch.tensor(image_split.labels)})
    return rows["image"], np.array(image_split.labels)


def image_groups(dataset: ImageDataset, model: ImageModel) -> dict[str, ImageGroup]:
    """Return test images of the trained classes first, then groups out of distribution."""
    images, labels = labelled_images(dataset, "test", model)
    excluded = [dataset.classes.index(name) for name in EXCLUDED_CLASSES]
    odd = torch.from_numpy(np.isin(labels, excluded))
    photographs = load_images("bsds500", None, model.shape.channels).splits["test"]
    crops = Crops(photographs, model.shape.side, max_crops=GROUP_SIZE)
    index = torch.arange(len(crops))
    natural = model.normalize(crops.gather(index))["image"]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(GROUP_SIZE, *images.shape[1:], generator=generator) * 2 - 1
    return {
        "learned classes": ImageGroup(_evenly_chosen(images[~odd])),
        "classes left out": ImageGroup(_evenly_chosen(images[odd])),
        "crops of CBSD68": ImageGroup(natural, crops.sources(index).numpy()),
        "uniform noise": ImageGroup(noise),
    }


def _evenly_chosen(images: Tensor) -> Tensor:
    """Return at most `GROUP_SIZE` evenly spaced images."""
    count = min(GROUP_SIZE, len(images))
    return images[np.linspace(0, len(images) - 1, count).round().astype(int)]


def draw_energy_maps(model: EnergyImageModel, groups: Mapping[str, ImageGroup], path: Path) -> None:
    """Draw ten images of each group with their energy maps, the first group also with noise."""
    chosen = {name: group.images[:: len(group.images) // 10][:10] for name, group in groups.items()}
    first, clean = next(iter(chosen.items()))
    noisy = model.add_noise(clean, model.shape.max_noise_level, torch.Generator().manual_seed(0))
    rows = {first: clean, "the same, noisy": noisy, **chosen}
    maps = [(name, list(x), list(model.energy_map(x.to(DEVICE)).cpu())) for name, x in rows.items()]
    save_png(energy_maps(maps), path)
    console.print(f"energy maps: {path}")
