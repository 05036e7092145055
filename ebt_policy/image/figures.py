"""Figures of image models."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ebt_policy.evaluation.figure_style import PALETTE, blank, styled
from ebt_policy.evaluation.figures import bands
from ebt_policy.evaluation.image_figures import ImageRow
from ebt_policy.image.metrics import (
    EvalSet,
    noisy_versions,
)
from ebt_policy.image.model import EnergyImageModel, ImageModel
from ebt_policy.image.tiling import Tiling, denoise_tiled

NUM_GRID_IMAGES = 4
NUM_GRID_STEPS = 8  # If there are more steps, this many evenly spaced ones are drawn.
NUM_MAPPED_IMAGES = 8  # images whose energy is drawn patch by patch


@styled
def descent_figure(studies: Mapping[str, Any]) -> Figure:
    """Draw the peak signal-to-noise ratio and the energy over the steps of descents.

    Args:
        studies: name of an entry -> result of `DescentStudy.summary`.
    """
    figure = blank(8.5, 3.3)
    quality, energy = figure.subplots(1, 2)
    for colour, (name, study) in zip(cycle(PALETTE), studies.items(), strict=False):
        means, low, high = bands(study["longer"])
        x = np.arange(len(means))
        quality.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        quality.plot(x, means, "-o", color=colour, markersize=3.5, label=Path(name).name)
        quality.axvline(study["steps"], color=colour, linestyle=":", linewidth=1)
        if study["energy"]:
            energy.plot(study["energy"], "-o", color=colour, markersize=3.5)
    quality.set(title="peak signal-to-noise ratio, dB", xlabel="steps")
    energy.set(title="energy minus its final value", xlabel="steps")
    quality.legend(fontsize=7)
    return figure


def step_rows(name: str, model: ImageModel, level: int, eval_set: EvalSet) -> list[ImageRow]:
    """Return rows of the first images: noisy, after at most `NUM_GRID_STEPS` steps, and clean."""
    noisy = noisy_versions(model, eval_set.images[:NUM_GRID_IMAGES], level)
    labels, generator = eval_set.labels[:NUM_GRID_IMAGES], torch.Generator().manual_seed(0)
    rows = []
    for result, clean in zip(
        denoise_tiled(model, noisy, level, labels, generator), eval_set.images, strict=False
    ):
        last = len(result.path) - 1
        steps = np.linspace(0, last, min(last, NUM_GRID_STEPS) + 1).round().astype(int)
        steps = np.unique(steps)
        images = [x.cpu() for x in (*(result.path[i] for i in steps), clean)]
        titles = [f"step {k}" if k else "noisy" for k in steps] + ["clean"]
        rows.append(ImageRow(name, images, titles))
    return rows


def energy_map_rows(
    model: EnergyImageModel, eval_set: EvalSet, level: int
) -> list[tuple[str, list[Tensor], list[Tensor]]]:
    """Return the central tiles of the first images, clean and noisy, with their energy maps."""
    tiles = [
        Tiling(image.shape[1], image.shape[2], model.shape.side).cut(image)
        for image in eval_set.images[:NUM_MAPPED_IMAGES]
    ]
    clean = torch.stack([image_tiles[len(image_tiles) // 2] for image_tiles in tiles])
    noisy = model.add_noise(clean, level, torch.Generator().manual_seed(0))
    labels = torch.tensor(eval_set.labels[:NUM_MAPPED_IMAGES], device=clean.device)
    classes = labels if model.shape.classes else None
    return [
        (name, list(images.cpu()), list(model.energy_map(images, classes).cpu()))
        for name, images in (("clean", clean), ("noisy", noisy))
    ]
