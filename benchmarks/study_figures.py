"""Figures of studies: inference delay, and energy signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.tables.cells import label_of
from benchmarks.tables.entry_labels import entry_label
from ebt_policy.evaluation.figure_style import (
    GREY,
    PALETTE,
    blank,
    styled,
)


@styled
def delay_curves(result: Mapping[str, Any]) -> Figure:
    """Draw score and chunk transitions over the prediction time.

    Args:
        result: result of the study ``delay``.
    """
    policies = list(dict.fromkeys(entry["policy"] for entry in result["entries"]))
    ways = list(dict.fromkeys(entry["way"] for entry in result["entries"]))
    ways.remove("offline")
    colours = dict(zip(ways, PALETTE, strict=False))
    figure = blank(11.5, 0.9 + 2.7 * len(policies))
    panels = {
        "score": "score",
        "success": "success",
        "transition_jump": "jump at transitions, px",
        "transition_second_difference": "second difference at transitions, px",
    }
    grid = figure.subplots(len(policies), 4, sharex=True, sharey="col", squeeze=False)
    for row, policy in zip(grid, policies, strict=True):
        curves: dict[str, list[Any]] = {}
        for entry in result["entries"]:
            if entry["policy"] == policy:
                curves.setdefault(entry["way"], []).append(entry)
        (steps,) = curves.pop("offline")
        for ax, (metric, title) in zip(row, panels.items(), strict=True):
            for mode, curve in curves.items():
                colour, x = colours[mode], [entry["delay_ms"] for entry in curve]
                low, high = np.array([entry[metric]["ci95"] for entry in curve]).T
                ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
                means = [entry[metric]["mean"] for entry in curve]
                label = label_of(mode)
                ax.plot(x, means, "-o", color=colour, markersize=3.5, linewidth=1.6, label=label)
            if metric in steps:
                label = "in steps, without delay"
                ax.axhline(steps[metric]["mean"], color=GREY, linestyle="--", label=label)
            elif metric == "transition_second_difference":
                within_chunks = [
                    entry["second_difference"]["mean"] for entry in curves["asynchronous"]
                ]
                ax.plot(x, within_chunks, ":", color=GREY, label="within chunks")
            ax.set(title=title)
        row[0].set_ylabel(entry_label(policy))
    for ax in grid[-1]:
        ax.set_xlabel("prediction time, ms")
    legend: dict[str, Any] = {}
    for ax in grid[0]:
        handles, labels = ax.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4)
    return figure


@styled
def interventions(result: Mapping[str, Any]) -> Figure:
    """Draw success over the number of interventions, or of fresh demonstrations.

    Args:
        result: result of the study ``interventions``.
    """
    entries = dict(zip(result["names"], result["entries"], strict=True))
    figure = blank(8.0, 3.4)
    axes: Any = figure.subplots(1, 2, sharey=True)
    curves: dict[str, list[tuple[int, float, Any]]] = {}
    for name, entry in entries.items():
        if name != "first":
            kind, _, count = name.partition("-")
            minutes = float(np.mean(result["person_minutes"][name]))
            curves.setdefault(kind, []).append((int(count), minutes, entry["success"]))
    first = entries["first"]["success"]
    for colour, (kind, points) in zip(PALETTE, curves.items(), strict=False):
        successes = [first, *(success for *_, success in points)]
        low, high = np.array([success["ci95"] for success in successes]).T
        means = [success["mean"] for success in successes]
        for ax, column in zip(axes, (0, 1), strict=True):
            x = [0, *(point[column] for point in points)]
            ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            ax.plot(x, means, "-o", color=colour, markersize=4, label=kind)
    axes[0].set(xlabel="number", ylabel="success")
    axes[1].set(xlabel="minutes of the person")
    axes[0].legend(loc="upper left")
    return figure


@styled
def energy_study(result: Mapping[str, Any]) -> Figure:
    """Draw best of M, areas under the ROC curve and reliability.

    Args:
        result: result of the study ``energy_signals``.
    """
    figure = blank(11.5, 5.2)
    candidates_axis, auroc_axis, reliability_axis = figure.subplots(1, 3, width_ratios=(1, 1.5, 1))
    counts = [row["candidates"] for row in result["candidates"]]
    for colour, metric in zip(PALETTE, ("score", "success"), strict=False):
        low, high = np.array([row[metric]["ci95"] for row in result["candidates"]]).T
        candidates_axis.fill_between(counts, low, high, color=colour, alpha=0.12, linewidth=0)
        means = [row[metric]["mean"] for row in result["candidates"]]
        candidates_axis.plot(counts, means, "-o", color=colour, markersize=4, label=metric)
    candidates_axis.set_xscale("log", base=2)
    ticks = [f"{row['candidates']}\n{row['chunk_ms']:.0f} ms" for row in result["candidates"]]
    candidates_axis.set_xticks(counts, ticks)
    candidates_axis.set(title="Best of M", xlabel="candidates and time of a chunk")
    candidates_axis.legend(loc="lower right")

    signal_areas = {
        f"unexpected: {event}": by_signal for event, by_signal in result["unexpected"].items()
    }
    signal_areas |= {
        f"failure, {event}": by_signal for event, by_signal in result["failure"].items()
    }
    names = list(next(iter(signal_areas.values())))
    rows = np.arange(len(signal_areas))[::-1]
    for k, (colour, name) in enumerate(zip(PALETTE, names, strict=False)):
        positions = rows + 0.3 - 0.6 * k / (len(names) - 1)
        cells = [by_signal[name] for by_signal in signal_areas.values()]
        auroc_axis.hlines(
            positions, *np.array([c["ci95"] for c in cells]).T, color=colour, alpha=0.5
        )
        means = [c["mean"] for c in cells]
        auroc_axis.plot(means, positions, "o", color=colour, markersize=4, label=label_of(name))
    auroc_axis.axvline(0.5, color=GREY, linewidth=1, linestyle="--")
    auroc_axis.set_yticks(rows, list(signal_areas))
    auroc_axis.set(title="Area under the ROC curve of each signal (0.5 is chance)")
    auroc_axis.grid(False, axis="y")
    handles, labels = auroc_axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)

    reliability_axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for colour, name in zip(PALETTE, names, strict=False):
        bins = result["reliability"]["unexpected"][name]["bins"]
        x, y = ([row["predicted"] for row in bins], [row["observed"]["mean"] for row in bins])
        reliability_axis.plot(x, y, "-o", color=colour, markersize=4)
    reliability_axis.set(
        title="Reliability, unexpected observations",
        xlabel="predicted probability",
        ylabel="observed frequency",
    )
    return figure
