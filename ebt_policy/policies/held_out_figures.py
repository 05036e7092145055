"""Figures of predictions on held-out episodes.

Shapes: L rows of an episode, C chunks, K predicted actions of a chunk, A action dimension, H x W
pixels, E episodes, s training runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ebt_policy.evaluation.figure_style import GREY, INK, PALETTE, blank, styled

MAX_PANELS = 6  # action entries that are drawn
MAX_FRAMES = 4
LEGEND_ROW = 0.2  # height of a row of a legend, inches


class ChunkTrace(NamedTuple):
    """Chunks that a policy predicts along a recorded episode.

    Attributes:
        recorded: (L, A) recorded actions.
        starts: (C,) row of the first action of each chunk.
        chunks: (C, K, A) predicted actions.
        executed: number of actions of a chunk until the next one.
        names: (A,) names of the entries of the action.
        spread: (A,) standard deviation of each entry in the data.
        frames: (C, H, W, 3) uint8, the newest frame of the first camera; None without cameras.
    """

    recorded: np.ndarray
    starts: np.ndarray
    chunks: np.ndarray
    executed: int
    names: Sequence[str]
    spread: np.ndarray
    frames: np.ndarray | None


def most_varied(trace: ChunkTrace) -> list[int]:
    """Return the action entries with the largest motion in this episode, in their order."""
    motion = trace.recorded.std(axis=0) / np.where(trace.spread > 0, trace.spread, np.inf)
    return sorted(np.argsort(-motion)[:MAX_PANELS].tolist())


def _seconds(rows: np.ndarray, fps: float | None) -> np.ndarray:
    return rows if fps is None else rows / fps


def _unit(fps: float | None) -> str:
    return "rows" if fps is None else "s"


@styled
def error_by_time(errors: Mapping[str, np.ndarray], fps: float | None) -> Figure:
    """Draw the error of each predicted action, with the range of the training runs.

    Args:
        errors: name -> (s, E, K), in standard deviations.
        fps: rows per second; None if unknown.
    """
    figure = blank(6.4, 3.4 + LEGEND_ROW * len(errors))
    ax = figure.subplots()
    for (name, values), color in zip(errors.items(), PALETTE * len(errors), strict=False):
        runs = np.nanmean(values, axis=1)  # (s, K)
        ahead = _seconds(np.arange(runs.shape[1]), fps)
        ax.plot(ahead, runs.mean(0), color=color, label=name)
        ax.fill_between(ahead, runs.min(0), runs.max(0), color=color, alpha=0.15, linewidth=0)
    ax.set_xlabel(f"time ahead, {_unit(fps)}")
    ax.set_ylabel("error, standard deviations")
    ax.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    return figure


@styled
def chunks_over_time(traces: Mapping[str, ChunkTrace], fps: float | None) -> Figure:
    """Draw recorded actions, and the executed part of the predicted chunks of each policy."""
    first = next(iter(traces.values()))
    entries = most_varied(first)
    figure = blank(8.0, 0.6 + 1.25 * len(entries) + LEGEND_ROW * (1 + len(traces)))
    axes = figure.subplots(len(entries), 1, sharex=True, squeeze=False)[:, 0]
    time = _seconds(np.arange(len(first.recorded)), fps)
    for ax, entry in zip(axes, entries, strict=True):
        ax.plot(time, first.recorded[:, entry], color=GREY, linewidth=2.5, label="recorded")
        for (name, trace), color in zip(traces.items(), PALETTE * len(traces), strict=False):
            for i, (start, chunk) in enumerate(zip(trace.starts, trace.chunks, strict=True)):
                part = chunk[: trace.executed][: len(first.recorded) - start, entry]
                ahead = _seconds(start + np.arange(len(part)), fps)
                ax.plot(ahead, part, color=color, linewidth=1, label=name if i == 0 else None)
        ax.set_ylabel(first.names[entry], fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8)
    axes[-1].set_xlabel(f"time, {_unit(fps)}")
    return figure


@styled
def chunks_with_frames(trace: ChunkTrace, fps: float | None) -> Figure:
    """Draw frames, and below each one the recorded and the predicted next actions."""
    assert trace.frames is not None
    chosen = np.unique(np.linspace(0, len(trace.starts) - 1, MAX_FRAMES).astype(int))
    entries = most_varied(trace)[:3]
    figure = blank(2.3 * len(chosen), 4.2)
    axes = figure.subplots(2, len(chosen), squeeze=False, height_ratios=(1.2, 1))
    for column, i in enumerate(chosen):
        start = int(trace.starts[i])
        axes[0, column].imshow(trace.frames[i])
        axes[0, column].set_axis_off()
        axes[0, column].set_title(f"{_seconds(np.array(start), fps):.4g} {_unit(fps)}", fontsize=9)
        ax = axes[1, column]
        recorded = trace.recorded[start : start + trace.chunks.shape[1]]
        for entry, color in zip(entries, PALETTE, strict=False):
            scale = trace.spread[entry] or 1.0
            origin = trace.recorded[:, entry].mean()
            ahead = _seconds(np.arange(trace.chunks.shape[1]), fps)
            ax.plot(ahead[: len(recorded)], (recorded[:, entry] - origin) / scale, color=GREY,
                    linewidth=2.5)  # fmt: skip
            ax.plot(ahead, (trace.chunks[i, :, entry] - origin) / scale, color=color, linewidth=1.2,
                    label=trace.names[entry])  # fmt: skip
        ax.tick_params(labelsize=7, colors=INK)
    axes[1, 0].set_ylabel("action, standard deviations", fontsize=8)
    axes[1, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel(f"time ahead, {_unit(fps)}", fontsize=9)
    return figure
