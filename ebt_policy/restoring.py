"""Evaluating models of images: ``python -m ebt_policy.eval checkpoint=RUN[@steps=3] ...``.

Takes the noise from images that were not learned from, that of training and twice as high a level,
and leaves ``summary.json``, ``table.md``, ``grid.png`` and a self-contained ``report.html``. Models
that make images of noise alone show some.

Shapes: N images, C channels, H x W pixels, K steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from ebt_policy.data.images import Gallery, Part, load_images
from ebt_policy.evaluation.entries import (
    facts_of,
    first_of_runs,
    load_entries,
    made_by,
    training_figures,
)
from ebt_policy.evaluation.image_figures import Strip, energy_maps, image_grid, over_steps, png
from ebt_policy.evaluation.protocol import progress_bar
from ebt_policy.evaluation.report import write_report
from ebt_policy.evaluation.stats import mean_ci, paired_differences
from ebt_policy.evaluation.summary import (
    Shown,
    format_count,
    format_estimate,
    markdown_table,
    write_atomic,
)
from ebt_policy.models.image import LEVELS, EnergyImageModel, ImageModel, Restored
from ebt_policy.models.tiling import Tiling, restore_tiled
from ebt_policy.options import ConfigError

console = Console()

MOST = 200  # images, evenly spread, of a set that has more
WINDOW = 128  # pixels: the middle of an image is evaluated, as in the EBT paper
FURTHER = 4  # times the steps that a model predicts with: how far thinking is followed
SHOWN = 4  # images in the grid
MAPPED = 8  # images whose energies are drawn patch by patch
MAPS = "Parts of images, and the share of each patch in their energy; red is what is high."
MADE = 4  # images of noise for each class, or rows of ten without classes


def psnr(images: Tensor, clean: Tensor) -> Tensor:
    """Peak signal to noise ratio of images (N, C, H, W) in [-1, 1]: (N,), dB."""
    found: Any = peak_signal_noise_ratio(
        images, clean, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3)
    )
    return found


def measures(images: Tensor, clean: Tensor) -> dict[str, np.ndarray]:
    """Of images (N, C, H, W) in [-1, 1]: ``psnr`` in dB, ``ssim`` and ``mse`` of 8-bit values."""
    ssim: Any = structural_similarity_index_measure(images, clean, data_range=2.0, reduction="none")
    error = (images - clean).square().flatten(1).mean(1) * 127.5**2
    found = {"psnr": psnr(images, clean), "ssim": ssim, "mse": error}
    return {name: value.reshape(len(images)).cpu().numpy() for name, value in found.items()}


class Tested(NamedTuple):
    """Images to restore: (C, H, W) in [-1, 1] each, and what they are."""

    images: list[Tensor]
    labels: list[int]
    about: dict[str, Any]


@lru_cache(maxsize=1)  # entries mostly share it
def _gallery(
    name: str | None, path: str | tuple[str, ...] | None, channels: int, skip_damaged: bool
) -> Gallery:
    return load_images(name, path, channels, skip_damaged=skip_damaged)


def tested(model: ImageModel, images: str | None, device: torch.device) -> Tested:
    """The middles of images that a model did not learn from, or of other ones.

    Raises:
        ImageError: there are none.
    """
    task = model.config["task"]
    path = task["path"]
    given = task["images"], tuple(path) if isinstance(path, list) else path
    if images is not None:
        given = (None, images) if Path(images).exists() else (images, None)
    gallery = _gallery(*given, model.shape.channels, task["skip_damaged"])
    held_out = [part for part in ("test", "validation", "train") if part in gallery.parts]
    if given[1] is not None and images is not None:  # another folder: all of it
        part = Part()
        for one in gallery.parts.values():
            part.pixels.extend(one.pixels)
            part.labels.extend(one.labels)
        held_out = ["all"]
    else:
        part = gallery.parts[held_out[0]]
    if held_out[0] == "train":
        raise ConfigError(f"{gallery.name} has no images but those it learned from; give images=.")
    chosen = np.unique(np.linspace(0, len(part) - 1, min(MOST, len(part))).round().astype(int))
    middles = []
    for i in chosen:
        pixels = part.pixels[i]
        top, left = (max(0, (side - WINDOW) // 2) for side in pixels.shape[:2])
        middle = torch.tensor(pixels[top : top + WINDOW, left : left + WINDOW])
        middles.append(middle.permute(2, 0, 1).float() / 127.5 - 1)
    return Tested(
        [image.to(device) for image in middles],
        [part.labels[i] for i in chosen],
        {"images": gallery.name, "part": held_out[0], "count": len(chosen)},
    )


def noisy_versions(model: ImageModel, images: Sequence[Tensor], noise: int) -> list[Tensor]:
    """The same noise for every model."""
    return [
        model.degrade(image[None], noise, torch.Generator().manual_seed(i))[0]
        for i, image in enumerate(images)
    ]


def psnrs(found: Sequence[Tensor], clean: Sequence[Tensor]) -> np.ndarray:
    """`psnr` of images whose sizes may differ: (N,)."""

    def of(images: Tensor, truth: Tensor) -> dict[str, np.ndarray]:
        return {"psnr": psnr(images, truth).reshape(-1).cpu().numpy()}

    return _by_size(of, found, clean)["psnr"]


def measured(found: Sequence[Tensor], clean: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """`measures` of images whose sizes may differ: (N,) each."""
    return _by_size(measures, found, clean)


def _by_size(
    of: Callable[[Tensor, Tensor], dict[str, np.ndarray]],
    found: Sequence[Tensor],
    clean: Sequence[Tensor],
) -> dict[str, np.ndarray]:
    """Images of one size together, which is many times faster than one by one."""
    sizes: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(clean):
        sizes.setdefault(image.shape, []).append(i)
    order = np.argsort(np.concatenate(list(sizes.values())))
    parts = [
        of(torch.stack([found[i] for i in index]), torch.stack([clean[i] for i in index]))
        for index in sizes.values()
    ]
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def evaluate_images(
    checkpoints: Sequence[str],
    *,
    output: Path,
    device: torch.device,
    command: str,
    images: str | None = None,
    noise: int | None = None,
) -> dict[str, Any]:
    """Restore held-out images with some models; returns what ``summary.json`` holds.

    Args:
        checkpoints: runs, ``RUN@name=value``; a * stands for training runs.
        images: other images than the test images of their training: a name, or a path.
        noise: level, shown beside its double; that of the first one's training unless given.

    Raises:
        CheckpointError, ConfigError, ImageError: before anything is computed.
    """
    contestants = load_entries(ImageModel, checkpoints, device)
    firsts = [models[0] for models in contestants.values()]
    making = {model.shape.noise == LEVELS for model in firsts}
    if len(making) > 1:
        raise ConfigError("models that make images and models that denoise do not compare.")
    output.mkdir(parents=True, exist_ok=True)
    if making.pop():
        return _made(contestants, checkpoints, output, command)
    low = noise or firsts[0].shape.noise
    if not 1 <= low <= LEVELS:
        raise ConfigError(f"noise must be 1 to {LEVELS}, got {low}.")
    levels = [level for level in (low, 2 * low) if level <= LEVELS]
    sets = {name: tested(models[0], images, device) for name, models in contestants.items()}
    entries, tables, figures = [], {}, []
    pictures: list[Strip] = []
    with progress_bar() as bar:
        for name, models in contestants.items():
            task = bar.add_task(name, total=len(models) * len(levels))
            entry: dict[str, Any] = {**made_by(name, models, command), **sets[name].about}
            for level in levels:
                noisy = noisy_versions(models[0], sets[name].images, level)
                after = []
                for model in models:
                    draws = torch.Generator().manual_seed(0)
                    found = restore_tiled(model, noisy, level, sets[name].labels, draws, SHOWN)
                    after.append(measured([one.images for one in found], sets[name].images))
                    if model is models[0] and level == low:
                        pictures += _strips(name, found, sets[name].images)
                    bar.advance(task)
                where = "" if level == low else "_double"
                table = {key: np.stack([one[key] for one in after]) for key in after[0]}
                tables[name, level] = table
                entry |= {key + where: mean_ci(value) for key, value in table.items()}
                entry[f"noise{where}"] = level
                entry[f"noisy_psnr{where}"] = float(psnrs(noisy, sets[name].images).mean())
            if isinstance(models[0], EnergyImageModel) and name in first_of_runs(contestants):
                entry["thinking"] = _thinking(models, sets[name], low)
                if models[0].has_energy:
                    maps = _maps(models[0], sets[name], low)
                    figures.append((f"Energy of patches, {name}", MAPS, maps))
            entries.append(entry)
    result = {"entries": entries, "paired": _paired(tables, sets)}
    write_atomic(output / "summary.json", json.dumps(result, indent=1) + "\n")
    table = markdown_table(result, IMAGES)
    write_atomic(output / "table.md", table)
    console.print(Markdown(table))
    grid = image_grid(pictures)
    png(grid, output / "grid.png")
    figures.append(("Images", "Noisy, after each step, and clean.", grid))
    thought = {entry["name"]: entry["thinking"] for entry in entries if "thinking" in entry}
    if thought:
        caption = "Over the steps of a descent, with 95 % intervals."
        figures.append(("Thinking longer", caption, over_steps(thought)))
    return _reported(result, IMAGES, figures, checkpoints, output, command)


def _reported(
    result: dict[str, Any], shown: Shown, figures: list[tuple[str, str, Figure]],
    checkpoints: Sequence[str], output: Path, command: str,
) -> dict[str, Any]:  # fmt: skip
    report = write_report(
        output / "report.html", title="image", comparison=result, shown=shown,
        figures=figures + training_figures(checkpoints, console), notes=[f"Made by: {command}"],
    )  # fmt: skip
    console.print(f"report: {report}", markup=False, soft_wrap=True, highlight=False)
    return result


def _strips(name: str, found: Sequence[Restored], clean: Sequence[Tensor]) -> list[Strip]:
    """Of the first images: noisy, after some steps, after the last, and clean."""
    rows = []
    for one, truth in list(zip(found, clean, strict=True))[:SHOWN]:
        at = np.unique(np.linspace(0, len(one.path) - 1, min(4, len(one.path))).round().astype(int))
        shown = [x.cpu() for x in (*(one.path[i] for i in at), truth)]
        rows.append(Strip(name, shown, [f"step {k}" if k else "noisy" for k in at] + ["clean"]))
    return rows


def _maps(model: EnergyImageModel, test: Tested, noise: int) -> Figure:
    """Of the middles of the first images, clean and noisy."""
    tiles = [
        Tiling(image.shape[1], image.shape[2], model.shape.side).cut(image)
        for image in test.images[:MAPPED]
    ]
    clean = torch.stack([of[len(of) // 2] for of in tiles])
    noisy = model.degrade(clean, noise, torch.Generator().manual_seed(0))
    labels = torch.tensor(test.labels[:MAPPED], device=clean.device)
    told = labels if model.shape.classes else None
    return energy_maps(
        [
            (name, list(x.cpu()), list(model.energy_map(x, told).cpu()))
            for name, x in (("clean", clean), ("noisy", noisy))
        ]
    )


def _thinking(models: Sequence[Any], test: Tested, noise: int) -> dict[str, Any]:
    """PSNR, and energy above its end, after each step."""
    how = models[0].inference
    noisy = noisy_versions(models[0], test.images, noise)
    last, by_model, energies = FURTHER * how.steps, [], []
    for model in models:
        model.configure_inference(steps=last, candidates=1)
        found = restore_tiled(model, noisy, noise, test.labels, torch.Generator().manual_seed(0))
        model.configure_inference(**asdict(how))
        steps = zip(*(one.path for one in found), strict=True)
        by_model.append([psnrs([x.clamp(-1, 1) for x in path], test.images) for path in steps])
        if each := [one.energies - one.energies[-1] for one in found if one.energies is not None]:
            energies.append(torch.stack(each).mean(0).tolist())
    table = np.array(by_model).swapaxes(0, 1)  # (K + 1, models, N)
    return {
        "steps": how.steps,
        "longer": [mean_ci(x) for x in table],
        "energy": np.mean(energies, axis=0).tolist() if energies else None,
    }


def _paired(
    tables: Mapping[tuple[str, int], dict[str, np.ndarray]], sets: Mapping[str, Tested]
) -> list[dict[str, Any]]:
    """Differences between those that restored the same images from the same noise."""
    same: dict[Any, list[str]] = {}
    for name, level in tables:
        test = sets[name]
        same.setdefault((level, *test.about.values(), test.images[0].shape), []).append(name)
    return [
        {"a": a, "b": b, "metric": f"{metric}, noise {level}", **difference}
        for (level, *_), names in same.items()
        for metric in ("psnr", "mse")
        for (a, b), difference in paired_differences(
            {name: tables[name, level][metric] for name in names}
        ).items()
    ]


def _made(
    contestants: Mapping[str, Sequence[ImageModel]], checkpoints: Sequence[str], output: Path,
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """Images of noise, a row a class."""
    entries, figures = [], []
    for name, (model, *_) in contestants.items():
        shape, generator = model.shape, torch.Generator().manual_seed(0)
        rows = shape.classes or MADE
        columns = MADE if shape.classes else 10
        noise = torch.randn(
            rows * columns, shape.channels, shape.side, shape.side, generator=generator
        ).to(model.abar.device)
        labels = torch.arange(rows, device=noise.device).repeat_interleave(columns)
        told = labels if shape.classes else None
        found = model.restore(noise, LEVELS, told, generator)
        grid = image_grid(
            [Strip("", list(row), []) for row in found.images.cpu().unflatten(0, (rows, columns))]
        )
        png(grid, output / f"{Path(name).name}.png")
        figures.append((f"Images of noise, {name}", "", grid))
        entries.append(made_by(name, contestants[name], command))
    result = {"entries": entries, "paired": []}
    write_atomic(output / "summary.json", json.dumps(result, indent=1) + "\n")
    return _reported(result, MADE_OF_NOISE, figures, checkpoints, output, command)


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    double = "psnr_double" in entry  # not where the noise is too high to be doubled
    return (
        entry["name"],
        format_count(entry["params"]),
        str(entry["steps"]),
        format_estimate(entry["psnr"], 2),
        format_estimate(entry["ssim"]),
        format_estimate(entry["mse"], 1),
        format_estimate(entry["psnr_double"], 2) if double else "",
        format_estimate(entry["mse_double"], 1) if double else "",
    )


def _facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    told = f"level {entry['noise']}, {entry['noisy_psnr']:.2f} dB"
    return [
        ("images", f"{entry['images']} ({entry['part']}), {entry['count']:,}; noise of {told}"),
        *facts_of(entry),
    ]


def _note(result: Mapping[str, Any]) -> str:
    sets = ", ".join(sorted({f"{e['images']} ({e['part']})" for e in result["entries"]}))
    return f"Mean and 95 % interval over images of {sets} and training seeds."


IMAGES = Shown(
    header=(
        "model", "params", "passes", "PSNR, dB", "SSIM", "MSE", "PSNR, twice the noise",
        "MSE, twice the noise",
    ),
    row=_row,
    metrics=("psnr", "ssim"),
    facts=_facts,
    note=_note,
    what="image by image with the same noise",
)  # fmt: skip
MADE_OF_NOISE = Shown(
    header=("model", "params", "passes"),
    row=lambda entry: (entry["name"], format_count(entry["params"]), str(entry["steps"])),
    metrics=(),
    facts=facts_of,
    note=lambda result: "Images made of noise alone.",
    what="",
)
