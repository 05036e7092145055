"""Evaluation of image models: ``python -m ebt_policy.eval checkpoint=RUN[@steps=3] ...``.

It denoises held-out images, at the noise level of training and at twice that level. It writes
``summary.json``, ``table.md``, ``grid.png`` and a self-contained ``report.html``. The cache
``restored.jsonl`` has the results of each run, so that the same command resumes. For models that
generate images from noise, the report shows samples instead.

Shapes: N images, C channels, H x W pixels, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import EvalEntry, entry_metadata, load_entries, metadata_rows
from ebt_policy.evaluation.eval_run import EvalRun
from ebt_policy.evaluation.evaluator import (
    EvaluatedEntry,
    Evaluation,
    ReportFigure,
    ReportVideo,
    SequentialEvaluation,
    run_evaluation,
)
from ebt_policy.evaluation.image_figures import ImageRow, energy_maps, image_grid, save_png
from ebt_policy.evaluation.image_metrics import compute_psnr
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.evaluation.statistics import mean_ci, paired_differences
from ebt_policy.evaluation.tables import ReportSpec, format_count, format_estimate
from ebt_policy.image.figures import descent_figure, energy_map_rows, step_rows
from ebt_policy.image.metrics import (
    WINDOW,
    EvalSet,
    denoising_metrics,
    descent_metrics,
    load_eval_set,
    noisy_versions,
)
from ebt_policy.image.model import EnergyImageModel, ImageModel
from ebt_policy.image.patch_transformer import LEVELS

CACHE = "restored.jsonl"
DENOISED, DESCENT = "restored", "thought"  # keys of results in the cache
NUM_SAMPLES = 4  # generated images of each class, or rows of ten images without classes

Entry = EvalEntry[ImageModel]


@dataclass(frozen=True)
class DenoisingConfig:
    """Images and noise on which image models are evaluated.

    Args:
        images: name or path of images; None for the held-out images of each model's data set.
        noise: noise level, evaluated together with twice this level; None for the highest training
            level of the first entry.
    """

    images: str | None = None
    noise: int | None = None

    def __post_init__(self) -> None:
        if self.noise is not None and not 1 <= self.noise <= LEVELS:
            raise ConfigError(f"noise must be 1 to {LEVELS}, got {self.noise}.")


def evaluate_images(
    checkpoints: Sequence[str], config: DenoisingConfig, *, output: Path, device: torch.device,
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """Denoise held-out images with models, or generate images with them.

    Args:
        checkpoints: runs, as ``RUN`` or ``RUN@name=value``; a * matches several training runs.
        output: folder of the results.
        command: the command line, stored with the results.

    Returns:
        The content of ``summary.json``.

    Raises:
        CheckpointError, ConfigError, ImageError: an argument cannot be used. This is raised before
            anything is measured.
    """
    entries = load_entries(ImageModel, checkpoints, device)
    generates = {entry.model.shape.max_noise_level == LEVELS for entry in entries}
    if len(generates) > 1:
        raise ConfigError(
            "models that generate images and models that denoise cannot be compared; evaluate them "
            "separately."
        )
    if not generates.pop():
        evaluation: Evaluation[Entry, Any, Any] = DenoisingEvaluation(config, entries, output)
    elif config == DenoisingConfig():
        evaluation = GenerationEvaluation()
    else:
        raise ConfigError("images= and noise= are for models that denoise; these generate images.")
    return run_evaluation(evaluation, entries, EvalRun(output, device, command))


class DescentStudy(NamedTuple):
    """PSNR and energy over descents that are longer than the model's own.

    Attributes:
        steps: number of steps that the model predicts with.
        psnr: (K + 1, models, N), dB.
        energy: mean energy minus its final value (K + 1,); None for models without an energy.
    """

    steps: int
    psnr: np.ndarray
    energy: list[float] | None

    def summary(self) -> dict[str, Any]:
        """Return the study's part of ``summary.json``."""
        longer = [mean_ci(ratios) for ratios in self.psnr]
        return {"steps": self.steps, "longer": longer, "energy": self.energy}


class DenoisingResult(NamedTuple):
    """Measurements of an entry.

    Attributes:
        metrics: noise level -> name of a metric -> values (models, N).
        noisy_psnr: noise level -> mean PSNR of the noisy images, dB.
        descent: longer descents; None if the model does not descend, or if an earlier entry has
            the same runs.
    """

    metrics: dict[int, dict[str, np.ndarray]]
    noisy_psnr: dict[int, float]
    descent: DescentStudy | None


Evaluated = EvaluatedEntry[Entry, EvalSet, DenoisingResult]


def _denoising_row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    double = "psnr_double" in summary  # Missing if the noise is too high to be doubled.
    return (
        summary["name"],
        format_count(summary["params"]),
        f"{summary['steps_used']['mean']:.4g}",
        format_estimate(summary["psnr"], 2),
        format_estimate(summary["ssim"]),
        format_estimate(summary["mse"], 1),
        format_estimate(summary["psnr_double"], 2) if double else "",
        format_estimate(summary["mse_double"], 1) if double else "",
    )


def _denoising_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    images = f"{summary['images']} ({summary['part']}), {summary['count']:,}"
    noise = f"noise level {summary['noise']}, PSNR {summary['noisy_psnr']:.2f} dB"
    return [("images", f"{images}; {noise}"), *metadata_rows(summary)]


def _denoising_note(comparison: Mapping[str, Any]) -> str:
    sets = {f"{entry['images']} ({entry['part']})" for entry in comparison["entries"]}
    return (
        f"Mean and 95 % interval over images of {', '.join(sorted(sets))} and training seeds, for "
        f"the central {WINDOW} x {WINDOW} pixels of each image."
    )


class DenoisingEvaluation(SequentialEvaluation[Entry, EvalSet, DenoisingResult]):
    """Evaluation of the quality of denoised images.

    Args:
        entries: all entries; the training noise of the first one is the default noise level.
        output: folder of the cache.
    """

    title = "image"
    spec = ReportSpec(
        header=(
            "model", "params", "passes", "PSNR, dB", "SSIM", "MSE", "PSNR at twice the noise, dB",
            "MSE at twice the noise",
        ),
        row=_denoising_row,
        metrics=("psnr", "ssim"),
        facts=_denoising_facts,
        note=_denoising_note,
        paired_over="image by image with the same noise",
    )  # fmt: skip

    def __init__(self, config: DenoisingConfig, entries: Sequence[Entry], output: Path) -> None:
        self.images, self.cache_file = config.images, output / CACHE
        self.noise = (
            entries[0].model.shape.max_noise_level if config.noise is None else config.noise
        )
        self.levels = [level for level in (self.noise, 2 * self.noise) if level <= LEVELS]

    def load_eval_set(self, entry: Entry, run: EvalRun) -> EvalSet:
        return load_eval_set(entry.model, self.images, run.device)

    def num_measurements(self, entry: Entry) -> int:
        return len(entry.models) * len(self.levels)

    def measure(
        self, entry: Entry, eval_set: EvalSet, advance: Callable[[], None]
    ) -> DenoisingResult:
        cache = ResultCache(self.cache_file, "found")

        def cached(key: str, level: int, compute: Callable[[Any], Any]) -> list[Any]:
            """Return a result for each training run, from the cache if available."""
            results = []
            for path, model in zip(entry.runs, entry.models, strict=True):
                identity = {
                    "key": f"{key} from level {level}",
                    "checkpoint": fingerprint(path),
                    "inference": asdict(model.inference),
                    "images": eval_set.digest,
                }
                results.append(cache.get_or_compute(identity, lambda model=model: compute(model)))
                if key == DENOISED:
                    advance()
            return results

        metrics, noisy_psnr = {}, {}
        for level in self.levels:
            noisy = noisy_versions(entry.model, eval_set.images, level)
            runs = cached(
                DENOISED, level, lambda m, n=noisy, k=level: denoising_metrics(m, n, k, eval_set)
            )
            metrics[level] = {key: np.array([run[key] for run in runs]) for key in runs[0]}
            noisy_psnr[level] = float(compute_psnr(noisy, eval_set.images).mean())
        descent = None
        if isinstance(entry.model, EnergyImageModel) and entry.first_of_runs:
            noisy = noisy_versions(entry.model, eval_set.images, self.noise)
            runs = cached(
                DESCENT, self.noise, lambda m: descent_metrics(m, noisy, self.noise, eval_set)
            )
            ratios = np.array([run["psnr"] for run in runs]).swapaxes(0, 1)
            energies = [run["energy"] for run in runs if run["energy"] is not None]
            energy = np.mean(energies, axis=0).tolist() if energies else None
            descent = DescentStudy(entry.model.inference.steps, ratios, energy)
        return DenoisingResult(metrics, noisy_psnr, descent)

    def summarize(
        self, entry: Entry, eval_set: EvalSet, result: DenoisingResult, run: EvalRun
    ) -> dict[str, Any]:
        summary: dict[str, Any] = {**entry_metadata(entry, run.command), **eval_set.metadata}
        for level in self.levels:
            suffix = "" if level == self.noise else "_double"
            summary |= {k + suffix: mean_ci(values) for k, values in result.metrics[level].items()}
            summary[f"noise{suffix}"] = level
            summary[f"noisy_psnr{suffix}"] = result.noisy_psnr[level]
        if result.descent is not None:
            summary["thinking"] = result.descent.summary()
        return summary

    def pair(self, evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
        """Return differences of entries that denoised the same images with the same noise."""
        groups: dict[tuple[int, str], list[Evaluated]] = {}
        for item in evaluated:
            for level in self.levels:
                groups.setdefault((level, item.eval_set.digest), []).append(item)
        return [
            {"a": a, "b": b, "metric": f"{metric}, noise {level}", **difference}
            for (level, _), items in groups.items()
            for metric in ("psnr", "mse")
            for (a, b), difference in paired_differences(
                {item.entry.name: item.result.metrics[level][metric] for item in items},
                {item.entry.name: tuple(item.entry.runs) for item in items},
            ).items()
        ]

    def figures(
        self, evaluated: Sequence[Evaluated], run: EvalRun
    ) -> tuple[list[ReportFigure], list[ReportVideo]]:
        figures: list[ReportFigure] = []
        rows: list[ImageRow] = []
        for item in evaluated:
            entry, eval_set = item.entry, item.eval_set
            rows += step_rows(entry.name, entry.model, self.noise, eval_set)
            model = entry.model
            if isinstance(model, EnergyImageModel) and model.has_energy and entry.first_of_runs:
                maps = energy_map_rows(model, eval_set, self.noise)
                caption = (
                    "Parts of images, and the contribution of each patch to their energy; red is "
                    "high."
                )
                figures.append((f"Energy of patches, {entry.name}", caption, energy_maps(maps)))
        grid = image_grid(rows)
        save_png(grid, run.output / "grid.png")
        figures.append(("Images", "Noisy images, images after each step, clean images.", grid))
        summaries = [item.summary for item in evaluated]
        if studies := {s["name"]: s["thinking"] for s in summaries if "thinking" in s}:
            caption = "PSNR and energy over the steps of a descent, with 95 % intervals."
            figures.append(("Thinking longer", caption, descent_figure(studies)))
        return figures, []


class GenerationEvaluation(SequentialEvaluation[Entry, None, Tensor]):
    """Evaluation that generates images from noise and measures nothing."""

    title = "image"
    spec = ReportSpec(
        header=("model", "params", "passes"),
        row=lambda entry: (entry["name"], format_count(entry["params"]), str(entry["steps"])),
        metrics=(),
        facts=metadata_rows,
        note=lambda result: "Images generated from pure noise.",
        paired_over="",
    )

    def load_eval_set(self, entry: Entry, run: EvalRun) -> None:
        return None

    def num_measurements(self, entry: Entry) -> int:
        return 1

    def measure(self, entry: Entry, eval_set: None, advance: Callable[[], None]) -> Tensor:
        """Generate images (rows, columns, C, H, W), one row for each class."""
        model, generator = entry.model, torch.Generator().manual_seed(0)
        shape = model.shape
        rows = shape.classes or NUM_SAMPLES
        columns = NUM_SAMPLES if shape.classes else 10
        noise = torch.randn(
            rows * columns, shape.channels, shape.side, shape.side, generator=generator
        ).to(model.abar.device)
        labels = torch.arange(rows, device=noise.device).repeat_interleave(columns)
        result = model.denoise(noise, LEVELS, labels if shape.classes else None, generator)
        advance()
        return result.images.cpu().unflatten(0, (rows, columns))

    def summarize(
        self, entry: Entry, eval_set: None, result: Tensor, run: EvalRun
    ) -> dict[str, Any]:
        return entry_metadata(entry, run.command)

    def figures(
        self, evaluated: Sequence[EvaluatedEntry[Entry, None, Tensor]], run: EvalRun
    ) -> tuple[list[ReportFigure], list[ReportVideo]]:
        figures: list[ReportFigure] = []
        for item in evaluated:
            name = item.entry.name
            grid = image_grid([ImageRow("", list(row), []) for row in item.result])
            save_png(grid, run.output / f"{name.replace('/', '-')}.png")
            figures.append((f"Generated images, {name}", "", grid))
        return figures, []
