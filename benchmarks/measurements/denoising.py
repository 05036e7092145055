"""BM3D as a denoising baseline, and figures of restored images and their energies."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.device import DEVICE
from benchmarks.study import StudyContext
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.evaluation.image_figures import ImageRow, energy_maps, image_grid, save_png
from ebt_policy.evaluation.image_metrics import compute_metrics, compute_psnr
from ebt_policy.evaluation.statistics import mean_ci
from ebt_policy.image.metrics import load_eval_set, noisy_versions
from ebt_policy.image.model import EnergyImageModel, ImageModel
from ebt_policy.image.tiling import denoise_tiled

DRAWN = {  # entry -> title
    "ebt-seed0@steps=2": "energy, System 1\n2 steps",
    "ebt_all_levels-seed0@steps=2": "energy, all levels\n2 steps",
    "refiner-seed0@steps=2": "refiner\n2 steps",
    "dit-seed0@steps=100,start_at_noise_level=false": "DiT, as the paper\nran it, 100 passes",
    "dit_wide-seed0@steps=1": "DiT, noise-conditioned\n1 pass",
}
PICTURES = 2
TILES = 8


def add_bm3d_baseline(
    context: StudyContext, result: dict[str, Any], *, images: str | None, noise: int
) -> None:
    """Add BM3D's metrics on the same noisy images, and the numbers of seeds and updates.

    Args:
        images: name of the test set; None for the test images of the training set.
        noise: noise level; twice the level is tested, too.
    """
    (checkpoint,) = context.checkpoints("energy_maps")
    model = ImageModel.from_checkpoint(checkpoint, "cpu")
    result["seeds"], result["updates"] = context.options.seeds, context.options.updates
    result["bm3d"] = bm3d_baseline(model, images, noise)


def bm3d_baseline(model: ImageModel, images: str | None, noise: int) -> dict[str, Any]:
    """Return metrics of BM3D on a model's noisy images; it receives the true standard deviation."""
    bm3d: Any = import_module("bm3d")
    test = load_eval_set(model, images, torch.device("cpu"))
    result: dict[str, Any] = {"name": "bm3d"}
    for suffix, level in (("", noise), ("_double", 2 * noise)):
        signal = float(model.abar[level])  # share of the clean image in the variance
        deviation = ((1 - signal) / signal) ** 0.5 / 2  # standard deviation, images in [0, 1]
        restored = []
        for noisy in noisy_versions(model, test.images, level):
            scaled = noisy.permute(1, 2, 0).numpy().astype(np.float64) / signal**0.5 / 2 + 0.5
            denoise: Any = bm3d.bm3d_rgb if scaled.shape[2] == 3 else bm3d.bm3d
            out = np.atleast_3d(denoise(scaled, deviation)).clip(0, 1)
            restored.append(torch.from_numpy(out).permute(2, 0, 1).float() * 2 - 1)
        for name, values in compute_metrics(restored, test.images).items():
            result[name + suffix] = mean_ci(values)
    return result


def draw_restored_images(
    context: StudyContext, result: dict[str, Any], *, kind: str, noise: int
) -> None:
    """Draw images with noise of both levels, restored by the entries `DRAWN`.

    The images are synthetic, because images of the test sets may not be published.
    """
    models = {}
    for checkpoint, title in zip(context.checkpoints("drawn"), DRAWN.values(), strict=True):
        path, inference = parse_checkpoint(checkpoint)
        models[title] = ImageModel.from_checkpoint(path, DEVICE)
        models[title].configure_inference(**inference)
    first = next(iter(models.values()))
    clean = load_eval_set(first, "leaves", DEVICE).images[:PICTURES]
    rows = []
    for level, label in ((noise, "training noise"), (2 * noise, "twice the noise")):
        noisy = noisy_versions(first, clean, level)
        columns = {"noisy": noisy}
        for title, model in models.items():
            restored = denoise_tiled(model, noisy, level, [0] * len(noisy), follow=False)
            columns[title] = [image.images for image in restored]
        for i, truth in enumerate(clean):
            row = [column[i] for column in columns.values()]
            ratios = compute_psnr(row, [truth] * len(row))
            titles = [
                f"{name}\n{ratio:.1f} dB" for name, ratio in zip(columns, ratios, strict=True)
            ]
            images = [x.cpu() for x in (*row, truth)]
            rows.append(ImageRow(f"{label}, {i + 1}", images, [*titles, "clean"]))
    save_png(image_grid(rows), _asset(context, f"denoising_{kind}_{context.options.size}.png"))


def draw_energy_maps(
    context: StudyContext, result: dict[str, Any], *, kind: str, noise: int
) -> None:
    """Draw clean, noisy and restored tiles of synthetic images with their energy maps."""
    model = EnergyImageModel.from_checkpoint(context.checkpoints("energy_maps")[0], DEVICE)
    side = model.shape.side
    images = load_eval_set(model, "leaves", DEVICE).images[:TILES]
    clean = torch.stack([image[:, :side, :side] for image in images])
    noisy = model.add_noise(clean, noise, torch.Generator().manual_seed(0))
    tiles = {"clean": clean, "noisy": noisy, "restored": model.denoise(noisy, noise).images}
    rows = [(name, list(x.cpu()), list(model.energy_map(x).cpu())) for name, x in tiles.items()]
    save_png(energy_maps(rows), _asset(context, f"energy_maps_{kind}_{context.options.size}.png"))


def _asset(context: StudyContext, name: str) -> Path:
    context.assets.mkdir(parents=True, exist_ok=True)
    return context.assets / name
