"""Evaluating models of video: ``python -m ebt_policy.eval checkpoint=RUN[@steps=3] ...``.

How well the next frame of clips that were not learned from is foreseen, in feature space; of models
with an energy also whether more steps help and whether the energy tells what is hard to foresee.
Leaves ``summary.json``, ``table.md``, ``strips.png``, an MP4 of rollouts and a self-contained
``report.html``; ``foreseen.jsonl`` has what was measured, run by run, so that an evaluation goes on
after a kill.

Shapes: N windows, S context, T frames of a clip, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.envs.mp4_writer import video_writer
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.detection import Samples, auroc
from ebt_policy.evaluation.entries import (
    entry_metadata,
    first_of_runs,
    load_entries,
    metadata_rows,
    runs_of,
    training_figures,
)
from ebt_policy.evaluation.image_figures import ImageRow, image_grid, png, side_by_side
from ebt_policy.evaluation.image_metrics import psnr
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.report import write_report
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.evaluation.statistics import mean_ci, paired_difference
from ebt_policy.evaluation.tables import ReportSpec, format_count, format_estimate, markdown_table
from ebt_policy.io.output import write_atomic
from ebt_policy.video.autoencoder import (
    Autoencoder,
    FrameFeatures,
    Latents,
    frame_features,
    signed,
)
from ebt_policy.video.data import Clip, FrameWindows, VideoDataset
from ebt_policy.video.datasets import VideoTaskConfig, load_other_videos, load_videos
from ebt_policy.video.feature_cache import encode_clips
from ebt_policy.video.figures import over_places
from ebt_policy.video.model import EnergyVideoModel, VideoModel, mean_square

console = Console()

BATCH = 64  # windows at once
FURTHER = 4  # times the steps that a model predicts with: how far thinking is followed
HARD = 0.25  # of the frames, those with the highest errors, are to be told by signals
SIGNALS = ("energy", "last step", "change")
SHOWN = 3  # clips in pictures and film
COLUMNS = 8  # frames of a strip
LONGEST = 64  # frames of a rollout
TALL = 192  # px of frames in the film


class EvalSet(NamedTuple):
    """Clips that were not learned from.

    Attributes:
        clips: their frames.
        features: (T, F) of each.
        windows: of all, one after the other.
        encoder: what made the features.
        about: which they are.
        rate_hz: frames a second.
        digest: of features and windows.
    """

    clips: list[Clip]
    features: list[Tensor]
    windows: FrameWindows
    encoder: FrameFeatures
    about: dict[str, Any]
    rate_hz: float
    digest: str


class PredictionErrors(NamedTuple):
    """Errors (N, S) of what a model foresaw, and its signals (N, S)."""

    errors: np.ndarray
    signals: dict[str, np.ndarray]

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> PredictionErrors:
        """As the log has it."""
        signals = {name: np.array(values) for name, values in kept["signals"].items()}
        return cls(np.array(kept["errors"]), signals)


def tested(model: VideoModel, other: str | None, device: torch.device) -> EvalSet:
    """The test clips of a model's training, or `load_other_videos`.

    Raises:
        VideoError, ConfigError: they, or their features, cannot be had.
    """
    task = options(VideoTaskConfig, model.config["task"], "task")
    footage = load_videos(task) if other is None else load_other_videos(task, other)
    encoder = frame_features(str(task.features), device)
    if encoder.digest != model.encoder:
        raise ConfigError(
            f"{task.features} is not what made the features that the model learned from; put that "
            "back, or train anew."
        )
    features = encode_clips({"test": footage.parts["test"]}, encoder)["test"]
    windows = FrameWindows(features, model.context, stride=model.context, device=device)
    clips = len(np.unique(windows.clip.numpy()))  # those that are long enough
    about = {"videos": footage.name, "clips": clips, "context": model.context}
    read = sha256(windows.frames.cpu().numpy().tobytes() + windows.starts.numpy().tobytes())
    digest = f"{read.hexdigest()[:16]} context {model.context}"
    return EvalSet(
        footage.parts["test"], features, windows, encoder, about, footage.rate_hz, digest
    )


def foreseen(model: VideoModel, windows: FrameWindows) -> PredictionErrors:
    """Errors and signals of a model on windows."""
    generator = torch.Generator().manual_seed(0)
    errors, signals = [], []
    for index in torch.arange(len(windows)).split(BATCH):
        rows = model.normalize(windows.gather(index))["frames"]
        error, signal = model.errors(rows, generator)
        errors.append(error.cpu())
        signals.append(signal)
    every = {name: torch.cat([one[name] for one in signals]).cpu().numpy() for name in signals[0]}
    return PredictionErrors(torch.cat(errors).numpy(), every)


def repeated(model: VideoModel, windows: FrameWindows) -> np.ndarray:
    """Errors (N, S) of repeating the last frame."""
    rows = model.normalize(windows.gather(torch.arange(len(windows))))["frames"]
    return mean_square(model.changes(rows)).cpu().numpy()


def by_clip(errors: np.ndarray, windows: FrameWindows) -> np.ndarray:
    """Mean error of each clip that has a window, from those of windows (N, S)."""
    clip = windows.clip.numpy()
    return np.array([errors[clip == i].mean() for i in np.unique(clip)])


def evaluate_video(
    checkpoints: Sequence[str], *, output: Path, device: torch.device, command: str,
    footage: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate some models; returns what ``summary.json`` holds.

    Args:
        checkpoints: runs, ``RUN@name=value``; a * stands for training runs.
        footage: other videos than those of their training, see `load_other_videos`.

    Raises:
        CheckpointError, ConfigError, VideoError: before anything is computed.
    """
    contestants = load_entries(VideoModel, checkpoints, device)
    tests = {name: tested(models[0], footage, device) for name, models in contestants.items()}
    output.mkdir(parents=True, exist_ok=True)
    log = ResultCache(output / "foreseen.jsonl", "found")
    entries, tables = [], {}
    with progress_bar() as bar:
        for text, (name, models) in zip(checkpoints, contestants.items(), strict=True):
            task, test = bar.add_task(name, total=len(models)), tests[name]
            prints = [fingerprint(run) for run in runs_of(text)]
            found = []
            for checkpoint, model in zip(prints, models, strict=True):
                found.append(PredictionErrors.of(_once(log, _foreseen, checkpoint, model, test)))
                bar.advance(task)
            tables[name] = np.stack([by_clip(one.errors, test.windows) for one in found])
            still = repeated(models[0], test.windows)
            entry = {
                **entry_metadata(name, models, command),
                **test.about,
                "error": mean_ci(tables[name]),
                "repeating": mean_ci(by_clip(still, test.windows)),
                "by_place": np.mean([one.errors for one in found], axis=(0, 1)).tolist(),
                "hard": _told(found, test.windows),
            }
            if isinstance(models[0], EnergyVideoModel) and name in first_of_runs(contestants):
                entry["thinking"] = _thinking(log, prints, models, test)
            if "energy" in found[0].signals:
                first = np.unique(test.windows.clip.numpy(), return_index=True)[1]
                energies = np.stack([one.signals["energy"] for one in found]).mean(0)
                entry["energy_at_the_start"] = energies[first].mean(0).tolist()
            entries.append(entry)
    result = {"entries": entries, "paired": _paired(tables, tests)}
    write_atomic(output / "summary.json", json.dumps(result, indent=1) + "\n")
    table = markdown_table(result, VIDEO)
    write_atomic(output / "table.md", table)
    console.print(Markdown(table))
    caption = "Error by place in the context; energy there; and error over the steps of a descent."
    figures = [("Foreseeing", caption, over_places(entries))]
    films = []
    if (grid := _pictures(contestants, tests, output)) is not None:
        figures.append(("Frames", "Truth, the next frame foreseen at each, and rollouts.", grid))
        films = [("truth, and rollouts from its first frames", output / "rollouts.mp4")]
    report = write_report(
        output / "report.html", title="video", comparison=result, shown=VIDEO,
        figures=figures + training_figures(checkpoints, console), videos=films,
        notes=[f"Made by: {command}"],
    )  # fmt: skip
    console.print(f"report: {report}", markup=False, soft_wrap=True, highlight=False)
    return result


def _once(
    log: ResultCache, what: Callable[[VideoModel, EvalSet], Any], checkpoint: str,
    model: VideoModel, test: EvalSet,
) -> Any:  # fmt: skip
    """What the log has of a checkpoint (its fingerprint), or else measured and written there."""
    identity = {
        "key": what.__name__.strip("_"),
        "checkpoint": checkpoint,
        "inference": asdict(model.inference) if isinstance(model, EnergyVideoModel) else None,
        "frames": test.digest,
    }
    return log.once(identity, lambda: what(model, test))


def _foreseen(model: VideoModel, test: EvalSet) -> dict[str, Any]:
    errors, signals = foreseen(model, test.windows)
    return {"errors": errors.tolist(), "signals": {k: x.tolist() for k, x in signals.items()}}


def _errors_of_clips(model: VideoModel, test: EvalSet) -> list[float]:
    return by_clip(foreseen(model, test.windows).errors, test.windows).tolist()


def _thinking(
    log: ResultCache, checkpoints: Sequence[str], models: Sequence[Any], test: EvalSet
) -> dict[str, Any]:
    """What more steps bring."""
    how, longer = models[0].inference, []
    for steps in range(1, FURTHER * how.steps + 1):
        errors = []
        for checkpoint, model in zip(checkpoints, models, strict=True):
            model.configure_inference(steps=steps)
            errors.append(_once(log, _errors_of_clips, checkpoint, model, test))
            model.configure_inference(**asdict(how))
        longer.append(mean_ci(np.array(errors)))
    return {"steps": how.steps, "longer": longer}


def _told(found: Sequence[PredictionErrors], windows: FrameWindows) -> dict[str, Any]:
    """Signal -> how well it tells the frames that are hard to foresee, area under the ROC curve."""
    clip = np.repeat(windows.clip.numpy(), found[0].errors.shape[1])
    hard = [one.errors.ravel() > np.quantile(one.errors, 1 - HARD) for one in found]
    return {
        name: auroc(
            [
                Samples(one.signals[name].ravel(), of, clip)
                for one, of in zip(found, hard, strict=True)
            ]
        )
        for name in found[0].signals
    }


def _paired(tables: Mapping[str, np.ndarray], tests: Mapping[str, EvalSet]) -> list[dict[str, Any]]:
    """Differences of those that foresaw the same frames in the same units."""
    return [
        {"a": a, "b": b, "metric": "error", **paired_difference(tables[a], tables[b])}
        for a, b in combinations(tables, 2)
        if tests[a].digest == tests[b].digest
    ]


def _pictures(
    contestants: Mapping[str, Sequence[VideoModel]], tests: Mapping[str, EvalSet], output: Path
) -> Any:
    """``strips.png`` and ``rollouts.mp4`` of the longest clips; None without a way back to frames.

    Of the entries whose frames and context are the first one's.
    """
    test = next(iter(tests.values()))
    shown = {
        name: (contestants[name][0], one.features, one.encoder)
        for name, one in tests.items()
        if isinstance(one.encoder, Latents) and _same_frames(one, test)
    }
    if not shown:
        return None
    longest = sorted(range(len(test.clips)), key=lambda i: -len(test.clips[i].frames))
    longest = [i for i in longest if len(test.clips[i].frames) > 1][:SHOWN]
    strips = []
    with video_writer(output / "rollouts.mp4", fps=test.rate_hz) as add:
        for i in longest:
            frames = test.clips[i].frames
            start = min(test.about["context"], len(frames) // 2)
            stop = min(len(frames), start + LONGEST)
            at = np.unique(np.linspace(start, stop - 1, COLUMNS).round().astype(int))
            film, rows = {"truth": frames[:stop]}, {"truth": frames[at]}
            for name, (model, features, encoder) in shown.items():
                known = model.normalize({"frames": features[i][None].to(model.mean)})["frames"]
                ahead = model.rollout(known[:, :start], stop - start)
                made = [known[:, :start], ahead, *_each_next(model, known, at)]
                raw = (torch.cat(made, 1)[0] * model.scale + model.mean).cpu()
                decoded = encoder.decode(raw, *frames.shape[1:3]).numpy()
                film[Path(name).name] = decoded[:stop]
                rows[f"{name}, next frame"] = decoded[stop:]
                rows[f"{name}, rollout"] = decoded[at]
            for name, of in rows.items():
                images = list(signed(torch.from_numpy(of)))
                strips.append(ImageRow(name, images, [f"frame {k}" for k in at]))
            for k in range(start, stop):
                add(side_by_side({name: of[k] for name, of in film.items()}, TALL))
    grid = image_grid(strips)
    png(grid, output / "strips.png")
    return grid


def _same_frames(one: EvalSet, other: EvalSet) -> bool:
    pairs = zip(one.clips, other.clips, strict=False)
    return one.about == other.about and all(np.array_equal(a.frames, b.frames) for a, b in pairs)


def _each_next(model: VideoModel, frames: Tensor, at: np.ndarray) -> list[Tensor]:
    """Some of (1, T, F), each foreseen from the frames before it, as many as the context holds."""
    return [model.rollout(frames[:, max(k - model.context, 0) : k], 1) for k in at]


def evaluate_autoencoder(
    run: Path, footage: VideoDataset, output: Path, device: torch.device
) -> dict[str, Any]:
    """What is left of test frames after an autoencoder: PSNR by clip, and ``frames.png``."""
    encoder = Latents(Autoencoder.from_checkpoint(run).net, device)
    ratios, strips = [], []
    for clip in footage.parts["test"]:
        frames = torch.from_numpy(clip.frames)
        made = encoder.decode(encoder.encode(frames), *frames.shape[1:3])
        pair = [signed(frames), signed(made)]
        ratios.append(float(psnr(pair[1], pair[0]).mean()))
        at = np.unique(np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int))
        for name, images in zip(("frames", "decoded"), pair, strict=True):
            strips.append(ImageRow(name, list(images[at]), []))
    output.mkdir(parents=True, exist_ok=True)
    result = {"psnr": mean_ci(ratios), "videos": footage.name}
    write_atomic(output / "summary.json", json.dumps(result, indent=1) + "\n")
    png(image_grid(strips[: 2 * SHOWN]), output / "frames.png")
    console.print(f"frames come back with {format_estimate(result['psnr'], 1)} dB: {output}")
    return result


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        entry["name"],
        format_count(entry["params"]),
        str(entry["steps"]),
        format_estimate(entry["error"]),
        format_estimate(entry["repeating"]),
        *(format_estimate(entry["hard"][k]) if k in entry["hard"] else "" for k in SIGNALS),
    )


def _facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    what = f"{entry['videos']}, {entry['clips']} test clips, context {entry['context']}"
    return [("videos", what), *metadata_rows(entry)]


VIDEO = ReportSpec(
    header=("model", "params", "steps", "error", "error of repeating the last frame",
            *(f"hard frames told by {name}, AUROC" for name in SIGNALS)),
    row=_row,
    metrics=("error",),
    facts=_facts,
    note=lambda result: (
        "Mean squared error of the change to the next frame in feature space, which had a mean "
        "square of 1 in training; mean and 95 % interval over test clips and training seeds."
    ),
    what="clip by clip",
)  # fmt: skip
