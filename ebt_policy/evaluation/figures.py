"""Figures that all evaluations share: intervals of entries, and training curves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ebt_policy.evaluation.figure_style import (
    BLUE,
    PALETTE,
    blank,
    styled,
)


@styled
def forest_plot(comparison: Mapping[str, Any], metrics: Sequence[str]) -> Figure:
    """Draw the mean and 95 % interval of each metric, one row for each entry of a comparison."""
    entries = comparison["entries"]
    figure = blank(7.6, 0.95 + 0.36 * len(entries))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    rows = np.arange(len(entries))[::-1]
    for ax, metric in zip(axes, metrics, strict=True):
        for row, entry in zip(rows, entries, strict=True):
            lo, hi = entry[metric]["ci95"]
            ax.plot([lo, hi], [row, row], color=BLUE, linewidth=2.4, alpha=0.5)
            ax.plot(entry[metric]["mean"], row, "o", color=BLUE, markersize=6)
        ax.set_title(metric)
        ax.set_ylim(-0.6, len(entries) - 0.4)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes[0].set_yticks(rows, [entry["name"] for entry in entries])
    figure.supxlabel("mean and 95 % interval", fontsize=9)
    return figure


@styled
def training_curve(path: str | os.PathLike[str]) -> Figure:
    """Draw losses, and scores if there are any, over the training steps of a JSONL log.

    Each line of the log is an object with `step` and metrics. Metrics with "loss" in their name are
    in the first panel, those with "score" or "success" in a second. Curves with more than 100
    points have a running mean.

    Raises:
        OSError: the log is missing.
        ValueError: the log has no loss.
    """
    records = _read_log(Path(path))
    losses = _curves(records, ("loss",))
    scores = _curves(records, ("score", "success"))
    if not losses:
        raise ValueError(f"{path} has no line with both 'step' and a loss; is it a training log?")
    figure = blank(6.4, 3.0 if not scores else 4.8)
    axes = figure.subplots(2 if scores else 1, 1, sharex=True, squeeze=False)[:, 0]
    for ax, curves in zip(axes, (losses, scores), strict=False):
        for color, (name, (steps, values)) in zip(PALETTE, curves.items(), strict=False):
            _draw_curve(ax, steps, values, color, name)
        ax.legend(loc="best", ncols=min(3, len(curves)), fontsize=9)
    if all((v > 0).all() and v.max() > 10 * v.min() for _, v in losses.values()):
        axes[0].set_yscale("log")
    axes[0].set_ylabel("loss")
    if scores:
        axes[1].set_ylabel("score")
    axes[-1].set_xlabel("training step")
    return figure


@styled
def compare_training_curves(logs: Mapping[str, Path]) -> Figure:
    """Draw the training loss of several runs, and their scores if there are any.

    Args:
        logs: name of a run -> its JSONL log (see `training_curve`).

    Raises:
        OSError: a log is missing.
        ValueError: no log has a loss.
    """
    records = {name: _read_log(path) for name, path in logs.items()}
    panels = {}
    for key, label in (("loss", "loss"), ("rollout_score", "score")):
        curves = {
            name: curve
            for name, lines in records.items()
            for metric, curve in _curves(lines, (key,)).items()
            if metric == key
        }
        if curves:
            panels[label] = curves
    if "loss" not in panels:
        raise ValueError(f"{', '.join(map(str, logs.values()))}: there is no loss to draw.")
    figure = blank(6.4, 3.0 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (label, curves) in zip(axes, panels.items(), strict=True):
        for color, (name, (steps, values)) in zip(cycle(PALETTE), curves.items(), strict=False):
            _draw_curve(ax, steps, values, color, name)
        ax.set_ylabel(label)
    if all((values > 0).all() for _, values in panels["loss"].values()):
        axes[0].set_yscale("log")
    axes[0].legend(loc="best", fontsize=8)
    axes[-1].set_xlabel("training step")
    return figure


def _draw_curve(ax: Axes, steps: np.ndarray, values: np.ndarray, color: str, name: str) -> None:
    """Draw a curve; one with more than 100 points is faint, with its running mean."""
    if len(steps) <= 100:
        ax.plot(steps, values, "-o", color=color, linewidth=1.8, markersize=4, label=name)
        return
    ones = np.ones(max(3, len(steps) // 50))
    # Dividing by the filtered ones makes the ends means of fewer points.
    smooth = np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
    ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.25)
    ax.plot(steps, smooth, color=color, linewidth=2.0, label=name)


def _read_log(path: Path) -> list[dict[str, Any]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    records = []
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if i == len(lines) - 1:  # a killed run may leave an incomplete line
                break
            raise ValueError(f"Line {i + 1} of {path} is not JSON: {error}.") from error
        if isinstance(record, dict):
            records.append(record)
    return records


def _curves(
    records: list[dict[str, Any]], keywords: tuple[str, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = {
        k: None for r in records for k in r if any(keyword in k.lower() for keyword in keywords)
    }
    curves = {}
    for name in names:
        pairs = [
            (r["step"], r[name])
            for r in records
            if isinstance(r.get("step"), int | float) and isinstance(r.get(name), int | float)
        ]
        pairs = [pair for pair in pairs if np.isfinite(pair).all()]
        if pairs:
            steps, values = np.array(pairs, dtype=np.float64).T
            curves[name] = (steps, values)
    return curves


def bands(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Return means, lower ends and upper ends of the intervals of entries ``{mean, ci95}``."""
    low, high = np.array([entry["ci95"] for entry in entries]).T
    return [entry["mean"] for entry in entries], low, high
