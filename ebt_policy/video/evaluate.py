"""Evaluation of video models: ``python -m ebt_policy.eval checkpoint=RUN[@steps=3] ...``.

It predicts the next frame of held-out clips in feature space. It also measures whether more descent
steps help, and whether the energy and other signals detect frames that are hard to predict. It
writes ``summary.json``, ``table.md``, ``strips.png``, an MP4 of rollouts and a self-contained
``report.html``. The cache ``foreseen.jsonl`` has the results of each run, so that the same command
resumes.

Shapes: N windows, S context, T frames of a clip, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from ebt_policy.envs.mp4_writer import video_writer
from ebt_policy.evaluation.entries import EvalEntry, entry_metadata, load_entries, metadata_rows
from ebt_policy.evaluation.eval_run import EvalRun
from ebt_policy.evaluation.evaluator import (
    EvaluatedEntry,
    ReportFigure,
    ReportVideo,
    SequentialEvaluation,
    run_evaluation,
)
from ebt_policy.evaluation.image_figures import ImageRow, image_grid, save_png, side_by_side
from ebt_policy.evaluation.image_metrics import psnr
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.evaluation.statistics import mean_ci, paired_difference
from ebt_policy.evaluation.tables import ReportSpec, format_count, format_estimate
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.video.autoencoder import Autoencoder, Latents, signed
from ebt_policy.video.data import VideoDataset
from ebt_policy.video.figures import error_figure
from ebt_policy.video.metrics import (
    EvalSet,
    PredictionErrors,
    clip_means,
    hard_frame_auroc,
    load_eval_set,
    prediction_errors,
    repetition_errors,
)
from ebt_policy.video.model import EnergyVideoModel, VideoModel

console = Console()

CACHE = "foreseen.jsonl"
PREDICTIONS, CLIP_ERRORS = "foreseen", "errors_of_clips"  # keys of results in the cache
MAX_STEP_FACTOR = 4  # multiple of the number of steps that a model predicts with
SIGNALS = ("energy", "last step", "change")
NUM_CLIPS = 3  # clips in figures and in the rollout video
NUM_COLUMNS = 8  # frames in a row of a figure
MAX_ROLLOUT = 64  # frames
FRAME_HEIGHT = 192  # px, in the rollout video

Entry = EvalEntry[VideoModel]


class VideoResult(NamedTuple):
    """Measurements of an entry.

    Attributes:
        predictions: errors and signals of each training run.
        repetition: errors (N, S) of repeating the last frame.
        errors_by_steps: number of steps -> errors (models, clips); empty if the model does not
            descend, or if an earlier entry has the same runs.
    """

    predictions: list[PredictionErrors]
    repetition: np.ndarray
    errors_by_steps: dict[int, np.ndarray]


Evaluated = EvaluatedEntry[Entry, EvalSet, VideoResult]


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    hard = summary["hard"]
    return (
        summary["name"],
        format_count(summary["params"]),
        str(summary["steps"]),
        format_estimate(summary["error"]),
        format_estimate(summary["repeating"]),
        *(format_estimate(hard[signal]) if signal in hard else "" for signal in SIGNALS),
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    videos = f"{summary['videos']}, {summary['clips']} test clips, context {summary['context']}"
    return [("videos", videos), *metadata_rows(summary)]


VIDEO_REPORT = ReportSpec(
    header=("model", "params", "steps", "error", "error of repeating the last frame",
            *(f"AUROC of {name} for hard frames" for name in SIGNALS)),
    row=_row,
    metrics=("error",),
    facts=_facts,
    note=lambda comparison: (
        "Mean squared error of the change to the next frame in feature space. Changes have a mean "
        "square of 1 in training. Mean and 95 % interval over test clips and training seeds."
    ),
    paired_over="clip by clip",
)  # fmt: skip


class VideoEvaluation(SequentialEvaluation[Entry, EvalSet, VideoResult]):
    """Evaluation of the errors of predicted frames.

    Args:
        video_dataset: see `load_other_videos`; None for the test clips of each model's data set.
        output: folder of the cache.
    """

    title = "video"
    spec = VIDEO_REPORT

    def __init__(self, video_dataset: str | None, output: Path) -> None:
        self.video_dataset, self.cache_file = video_dataset, output / CACHE

    def load_eval_set(self, entry: Entry, run: EvalRun) -> EvalSet:
        return load_eval_set(entry.model, self.video_dataset, run.device)

    def measure(self, entry: Entry, eval_set: EvalSet, advance: Callable[[], None]) -> VideoResult:
        cache, windows = ResultCache(self.cache_file, "found"), eval_set.windows
        fingerprints = [fingerprint(path) for path in entry.runs]

        def cached(key: str, checkpoint: str, model: VideoModel, compute: Callable[[], Any]) -> Any:
            descends = isinstance(model, EnergyVideoModel)
            identity = {
                "key": key,
                "checkpoint": checkpoint,
                "inference": asdict(model.inference) if descends else None,
                "frames": eval_set.digest,
            }
            return cache.get_or_compute(identity, compute)

        predictions = []
        for checkpoint, model in zip(fingerprints, entry.models, strict=True):
            compute = lambda m=model: prediction_errors(m, windows).to_json()  # noqa: E731
            stored = cached(PREDICTIONS, checkpoint, model, compute)
            predictions.append(PredictionErrors.from_json(stored))
            advance()
        errors_by_steps = {}
        if isinstance(entry.model, EnergyVideoModel) and entry.first_of_runs:
            inference = entry.model.inference
            for steps in range(1, MAX_STEP_FACTOR * inference.steps + 1):
                errors = []
                for checkpoint, model in zip(fingerprints, entry.models, strict=True):
                    model.configure_inference(steps=steps)
                    compute = lambda m=model: clip_means(  # noqa: E731
                        prediction_errors(m, windows).errors, windows
                    ).tolist()
                    errors.append(cached(CLIP_ERRORS, checkpoint, model, compute))
                    model.configure_inference(**asdict(inference))
                errors_by_steps[steps] = np.array(errors)
        return VideoResult(predictions, repetition_errors(entry.model, windows), errors_by_steps)

    def summarize(
        self, entry: Entry, eval_set: EvalSet, result: VideoResult, run: EvalRun
    ) -> dict[str, Any]:
        windows, predictions = eval_set.windows, result.predictions
        summary = {
            **entry_metadata(entry, run.command),
            **eval_set.metadata,
            "error": mean_ci(_errors_by_clip(result, eval_set)),
            "repeating": mean_ci(clip_means(result.repetition, windows)),
            "by_place": np.mean([run.errors for run in predictions], axis=(0, 1)).tolist(),
            "hard": hard_frame_auroc(predictions, windows),
        }
        if result.errors_by_steps:
            summary["thinking"] = {
                "steps": entry.model.inference.steps,
                "longer": [mean_ci(errors) for errors in result.errors_by_steps.values()],
            }
        if "energy" in predictions[0].signals:
            first = np.unique(windows.clip.numpy(), return_index=True)[1]
            energies = np.stack([run.signals["energy"] for run in predictions]).mean(0)
            summary["energy_at_the_start"] = energies[first].mean(0).tolist()
        return summary

    def pair(self, evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
        """Return differences of entries that predicted the same frames in the same units."""
        errors = {
            item.entry.name: _errors_by_clip(item.result, item.eval_set) for item in evaluated
        }
        return [
            {
                "a": a.entry.name,
                "b": b.entry.name,
                "metric": "error",
                **paired_difference(
                    errors[a.entry.name],
                    errors[b.entry.name],
                    same_runs=a.entry.runs == b.entry.runs,
                ),
            }
            for a, b in combinations(evaluated, 2)
            if a.eval_set.digest == b.eval_set.digest
        ]

    def figures(
        self, evaluated: Sequence[Evaluated], run: EvalRun
    ) -> tuple[list[ReportFigure], list[ReportVideo]]:
        caption = (
            "Error and energy over the number of context frames, and error over descent steps."
        )
        figure = error_figure([item.summary for item in evaluated])
        figures: list[ReportFigure] = [("Predictions", caption, figure)]
        models = {item.entry.name: (item.entry.model, item.eval_set) for item in evaluated}
        grid = draw_rollouts(models, run.output)
        if grid is None:
            return figures, []
        caption = "True frames, predictions of the next frame, and rollouts."
        figures.append(("Frames", caption, grid))
        return figures, [("true frames, and rollouts after a context", run.output / "rollouts.mp4")]


def _errors_by_clip(result: VideoResult, eval_set: EvalSet) -> np.ndarray:
    """Return mean errors, (models, clips)."""
    return np.stack([clip_means(run.errors, eval_set.windows) for run in result.predictions])


def evaluate_video(
    checkpoints: Sequence[str], *, output: Path, device: torch.device, command: str,
    video_dataset: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure how well models predict the next frame of held-out clips.

    Args:
        checkpoints: runs, as ``RUN`` or ``RUN@name=value``; a * matches several training runs.
        output: folder of the results.
        command: the command line, stored with the results.
        video_dataset: see `load_other_videos`; None for the test clips of each model's data set.

    Returns:
        The content of ``summary.json``.

    Raises:
        CheckpointError, ConfigError, VideoError: an argument cannot be used. This is raised before
            anything is measured.
    """
    entries = load_entries(VideoModel, checkpoints, device)
    return run_evaluation(
        VideoEvaluation(video_dataset, output), entries, EvalRun(output, device, command)
    )


def draw_rollouts(models: Mapping[str, tuple[VideoModel, EvalSet]], output: Path) -> Figure | None:
    """Write ``strips.png`` and ``rollouts.mp4`` of the longest clips.

    A model is drawn if its features can be decoded, and if it has the frames and the context of the
    first model.

    Args:
        models: name of an entry -> its model and its evaluation set.
        output: folder of the files.

    Returns:
        The figure of ``strips.png``; None if no features can be decoded.
    """
    _, reference = next(iter(models.values()))
    decodable = {
        name: (model, eval_set.features, eval_set.encoder)
        for name, (model, eval_set) in models.items()
        if isinstance(eval_set.encoder, Latents) and _same_frames(eval_set, reference)
    }
    if not decodable:
        return None
    clips = reference.clips
    longest = sorted(range(len(clips)), key=lambda i: -len(clips[i].frames))
    longest = [i for i in longest if len(clips[i].frames) > 1][:NUM_CLIPS]
    image_rows = []
    with video_writer(output / "rollouts.mp4", fps=reference.rate_hz) as add_frame:
        for i in longest:
            frames = clips[i].frames
            start = min(reference.metadata["context"], len(frames) // 2)
            stop = min(len(frames), start + MAX_ROLLOUT)
            columns = np.unique(np.linspace(start, stop - 1, NUM_COLUMNS).round().astype(int))
            panels, rows = {"truth": frames[:stop]}, {"truth": frames[columns]}
            for name, (model, features, encoder) in decodable.items():
                context = model.normalize({"frames": features[i][None].to(model.mean)})["frames"]
                rollout = model.rollout(context[:, :start], stop - start)
                predictions = [context[:, :start], rollout, *_next_frames(model, context, columns)]
                raw = (torch.cat(predictions, 1)[0] * model.scale + model.mean).cpu()
                decoded = encoder.decode(raw, *frames.shape[1:3]).numpy()
                panels[Path(name).name] = decoded[:stop]
                rows[f"{name}, next frame"] = decoded[stop:]
                rows[f"{name}, rollout"] = decoded[columns]
            for name, row in rows.items():
                images = list(signed(torch.from_numpy(row)))
                image_rows.append(ImageRow(name, images, [f"frame {k}" for k in columns]))
            for k in range(start, stop):
                add_frame(
                    side_by_side({name: panel[k] for name, panel in panels.items()}, FRAME_HEIGHT)
                )
    grid = image_grid(image_rows)
    save_png(grid, output / "strips.png")
    return grid


def _same_frames(a: EvalSet, b: EvalSet) -> bool:
    pairs = zip(a.clips, b.clips, strict=False)
    return a.metadata == b.metadata and all(np.array_equal(x.frames, y.frames) for x, y in pairs)


def _next_frames(model: VideoModel, frames: Tensor, indices: np.ndarray) -> list[Tensor]:
    """Predict the frames at some indices of (1, T, F), each from at most S frames before it."""
    return [model.rollout(frames[:, max(k - model.context, 0) : k], 1) for k in indices]


def evaluate_autoencoder(
    run: Path, videos: VideoDataset, output: Path, device: torch.device
) -> dict[str, Any]:
    """Measure the PSNR of test frames after encoding and decoding, and write ``frames.png``.

    Returns:
        The content of ``summary.json``; the PSNR is averaged over clips.
    """
    encoder = Latents(Autoencoder.from_checkpoint(run).net, device)
    ratios, rows = [], []
    for clip in videos.splits["test"]:
        frames = torch.from_numpy(clip.frames)
        decoded = encoder.decode(encoder.encode(frames), *frames.shape[1:3])
        pair = [signed(frames), signed(decoded)]
        ratios.append(float(psnr(pair[1], pair[0]).mean()))
        columns = np.unique(np.linspace(0, len(frames) - 1, NUM_COLUMNS).round().astype(int))
        for name, images in zip(("frames", "decoded"), pair, strict=True):
            rows.append(ImageRow(name, list(images[columns]), []))
    output.mkdir(parents=True, exist_ok=True)
    result = {"psnr": mean_ci(ratios), "videos": videos.name}
    atomic_write(output / "summary.json", json.dumps(result, indent=1) + "\n")
    save_png(image_grid(rows[: 2 * NUM_CLIPS]), output / "frames.png")
    console.print(f"PSNR of decoded frames: {format_estimate(result['psnr'], 1)} dB ({output})")
    return result
