"""Evaluating models of images: ``python -m ebt_policy.eval checkpoint=RUN[@steps=3] ...``.

Takes the noise from images that were not learned from, that of training and twice as high a level,
and leaves ``summary.json``, ``table.md``, ``grid.png`` and a self-contained ``report.html``;
``restored.jsonl`` has what was measured, run by run, so that an evaluation goes on after a kill.
Models that make images of noise alone show some.

Shapes: N images, C channels, H x W pixels, K steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor

from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import (
    entry_metadata,
    first_of_runs,
    load_entries,
    metadata_rows,
    runs_of,
    training_figures,
)
from ebt_policy.evaluation.image_figures import ImageRow, energy_maps, image_grid, png
from ebt_policy.evaluation.image_metrics import measured, psnrs
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.report import write_report
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.evaluation.statistics import mean_ci, paired_differences
from ebt_policy.evaluation.tables import ReportSpec, format_count, format_estimate, markdown_table
from ebt_policy.image.figures import over_steps
from ebt_policy.image.metrics import WINDOW, EvalSet, noisy_versions, tested
from ebt_policy.image.model import EnergyImageModel, ImageModel
from ebt_policy.image.patch_transformer import LEVELS
from ebt_policy.image.tiling import Tiling, denoise_tiled
from ebt_policy.io.output import write_atomic

console = Console()

FURTHER = 4  # times the steps that a model predicts with: how far thinking is followed
SHOWN = 4  # images in the grid
STEPS_SHOWN = 8  # of each, evenly spread where there are more
MAPPED = 8  # images whose energies are drawn patch by patch
MAPS = "Parts of images, and the share of each patch in their energy; red is what is high."
MADE = 4  # images of noise for each class, or rows of ten without classes


@dataclass(frozen=True)
class RestoringOptions:
    """What models of images are evaluated on.

    Args:
        images: other images than the test images of their training: a name, or a path.
        noise: level, shown beside its double; None for that of the first one's training.
    """

    images: str | None = None
    noise: int | None = None

    def __post_init__(self) -> None:
        if self.noise is not None and not 1 <= self.noise <= LEVELS:
            raise ConfigError(f"noise must be 1 to {LEVELS}, got {self.noise}.")


def evaluate_images(
    checkpoints: Sequence[str], how: RestoringOptions, *, output: Path, device: torch.device,
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """Restore held-out images with some models; returns what ``summary.json`` holds.

    Args:
        checkpoints: runs, ``RUN@name=value``; a * stands for training runs.

    Raises:
        CheckpointError, ConfigError, ImageError: before anything is computed.
    """
    contestants = load_entries(ImageModel, checkpoints, device)
    firsts = [models[0] for models in contestants.values()]
    making = {model.shape.max_noise_level == LEVELS for model in firsts}
    if len(making) > 1:
        raise ConfigError("models that make images and models that denoise do not compare.")
    if making.pop():
        if how != RestoringOptions():
            raise ConfigError("images= and noise= are for models that denoise; these make images.")
        output.mkdir(parents=True, exist_ok=True)
        return _made(contestants, checkpoints, output, command)
    low = firsts[0].shape.max_noise_level if how.noise is None else how.noise
    levels = [level for level in (low, 2 * low) if level <= LEVELS]
    sets = {name: tested(models[0], how.images, device) for name, models in contestants.items()}
    output.mkdir(parents=True, exist_ok=True)
    log = ResultCache(output / "restored.jsonl", "found")
    entries, tables, figures = [], {}, []
    pictures: list[ImageRow] = []
    with progress_bar() as bar:
        for text, (name, models) in zip(checkpoints, contestants.items(), strict=True):
            task = bar.add_task(name, total=len(models) * len(levels))
            test, runs = sets[name], runs_of(text)
            entry: dict[str, Any] = {**entry_metadata(name, models, command), **test.about}
            for level in levels:
                noisy = noisy_versions(models[0], test.images, level)
                after = []
                for run, model in zip(runs, models, strict=True):
                    after.append(_once(log, _restored, run, model, noisy, level, test))
                    bar.advance(task)
                where = "" if level == low else "_double"
                table = {key: np.array([one[key] for one in after]) for key in after[0]}
                tables[name, level] = table
                entry |= {key + where: mean_ci(value) for key, value in table.items()}
                entry[f"noise{where}"] = level
                entry[f"noisy_psnr{where}"] = float(psnrs(noisy, test.images).mean())
            noisy = noisy_versions(models[0], test.images, low)
            pictures += _strips(name, models[0], noisy, low, test)
            if isinstance(models[0], EnergyImageModel) and name in first_of_runs(contestants):
                entry["thinking"] = _thinking(log, runs, models, noisy, low, test)
                if models[0].has_energy:
                    maps = _maps(models[0], test, low)
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
    result: dict[str, Any], shown: ReportSpec, figures: list[tuple[str, str, Figure]],
    checkpoints: Sequence[str], output: Path, command: str,
) -> dict[str, Any]:  # fmt: skip
    report = write_report(
        output / "report.html", title="image", comparison=result, shown=shown,
        figures=figures + training_figures(checkpoints, console), notes=[f"Made by: {command}"],
    )  # fmt: skip
    console.print(f"report: {report}", markup=False, soft_wrap=True, highlight=False)
    return result


def _once(
    log: ResultCache, what: Callable[..., Any], run: Path, model: ImageModel,
    noisy: Sequence[Tensor], level: int, test: EvalSet,
) -> Any:  # fmt: skip
    """What the log has of a run, or else measured and written there."""
    identity = {
        "key": f"{what.__name__.strip('_')} from level {level}",
        "checkpoint": fingerprint(run),
        "inference": asdict(model.inference),
        "images": test.digest,
    }
    return log.once(identity, lambda: what(model, noisy, level, test))


def _restored(
    model: ImageModel, noisy: Sequence[Tensor], level: int, test: EvalSet
) -> dict[str, list[float]]:
    """Measures of what is made of each image."""
    draws = torch.Generator().manual_seed(0)
    found = denoise_tiled(model, noisy, level, test.labels, draws, follow=False)
    measures = measured([one.images for one in found], test.images)
    used = [float(one.steps_used) for one in found]
    return {"steps_used": used} | {name: values.tolist() for name, values in measures.items()}


def _thinking(
    log: ResultCache, runs: Sequence[Path], models: Sequence[Any], noisy: Sequence[Tensor],
    level: int, test: EvalSet,
) -> dict[str, Any]:  # fmt: skip
    """PSNR and energy after each step of descents that are longer than those that predict."""
    thought = [
        _once(log, _thought, run, model, noisy, level, test)
        for run, model in zip(runs, models, strict=True)
    ]
    ratios = np.array([one["psnr"] for one in thought]).swapaxes(0, 1)  # (K + 1, models, N)
    energies = [one["energy"] for one in thought if one["energy"] is not None]
    return {
        "steps": models[0].inference.steps,
        "longer": [mean_ci(x) for x in ratios],
        "energy": np.mean(energies, axis=0).tolist() if energies else None,
    }


def _thought(
    model: EnergyImageModel, noisy: Sequence[Tensor], level: int, test: EvalSet
) -> dict[str, Any]:
    """PSNR (K + 1, N), and mean energy above its end (K + 1,), over a long descent."""
    how = model.inference
    model.configure_inference(steps=FURTHER * how.steps, num_candidates=1)
    found = denoise_tiled(model, noisy, level, test.labels, torch.Generator().manual_seed(0))
    model.configure_inference(**asdict(how))
    steps = zip(*(one.path for one in found), strict=True)
    ratios = [psnrs([x.clamp(-1, 1) for x in path], test.images).tolist() for path in steps]
    above = [one.energies - one.energies[-1] for one in found if one.energies is not None]
    return {"psnr": ratios, "energy": torch.stack(above).mean(0).tolist() if above else None}


def _strips(
    name: str, model: ImageModel, noisy: Sequence[Tensor], level: int, test: EvalSet
) -> list[ImageRow]:
    """Of the first images: noisy, after each step (some of many), and clean."""
    draws = torch.Generator().manual_seed(0)
    found = denoise_tiled(model, noisy[:SHOWN], level, test.labels[:SHOWN], draws)
    rows = []
    for one, truth in zip(found, test.images, strict=False):
        last = len(one.path) - 1
        at = np.unique(np.linspace(0, last, min(last, STEPS_SHOWN) + 1).round().astype(int))
        shown = [x.cpu() for x in (*(one.path[i] for i in at), truth)]
        rows.append(ImageRow(name, shown, [f"step {k}" if k else "noisy" for k in at] + ["clean"]))
    return rows


def _maps(model: EnergyImageModel, test: EvalSet, noise: int) -> Figure:
    """Of the middles of the first images, clean and noisy."""
    tiles = [
        Tiling(image.shape[1], image.shape[2], model.shape.side).cut(image)
        for image in test.images[:MAPPED]
    ]
    clean = torch.stack([of[len(of) // 2] for of in tiles])
    noisy = model.add_noise(clean, noise, torch.Generator().manual_seed(0))
    labels = torch.tensor(test.labels[:MAPPED], device=clean.device)
    told = labels if model.shape.classes else None
    return energy_maps(
        [
            (name, list(x.cpu()), list(model.energy_map(x, told).cpu()))
            for name, x in (("clean", clean), ("noisy", noisy))
        ]
    )


def _paired(
    tables: Mapping[tuple[str, int], dict[str, np.ndarray]], sets: Mapping[str, EvalSet]
) -> list[dict[str, Any]]:
    """Differences between those that restored the same images from the same noise."""
    same: dict[Any, list[str]] = {}
    for name, level in tables:
        test = sets[name]
        same.setdefault((level, test.digest), []).append(name)
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
        found = model.denoise(noise, LEVELS, told, generator)
        grid = image_grid(
            [
                ImageRow("", list(row), [])
                for row in found.images.cpu().unflatten(0, (rows, columns))
            ]
        )
        png(grid, output / f"{name.replace('/', '-')}.png")
        figures.append((f"Images of noise, {name}", "", grid))
        entries.append(entry_metadata(name, contestants[name], command))
    result = {"entries": entries, "paired": []}
    write_atomic(output / "summary.json", json.dumps(result, indent=1) + "\n")
    return _reported(result, MADE_OF_NOISE, figures, checkpoints, output, command)


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    double = "psnr_double" in entry  # not where the noise is too high to be doubled
    return (
        entry["name"],
        format_count(entry["params"]),
        f"{entry['steps_used']['mean']:.4g}",
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
        *metadata_rows(entry),
    ]


def _note(result: Mapping[str, Any]) -> str:
    sets = ", ".join(sorted({f"{e['images']} ({e['part']})" for e in result["entries"]}))
    return (
        f"Mean and 95 % interval over images of {sets} and training seeds; of each image the "
        f"middle {WINDOW} x {WINDOW} pixels."
    )


IMAGES = ReportSpec(
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
MADE_OF_NOISE = ReportSpec(
    header=("model", "params", "passes"),
    row=lambda entry: (entry["name"], format_count(entry["params"]), str(entry["steps"])),
    metrics=(),
    facts=metadata_rows,
    note=lambda result: "Images made of noise alone.",
    what="",
)
