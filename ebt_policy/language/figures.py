"""Figures of language models: test-time compute and scaling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ebt_policy.evaluation.figure_style import (
    PALETTE,
    blank,
    styled,
)
from ebt_policy.evaluation.figures import bands


@styled
def test_time_compute_figure(studies: Mapping[str, Any]) -> Figure:
    """Draw surprisal over steps and candidates, and energies over the descent.

    Args:
        studies: name of an entry -> result of `study_test_time_compute`.
    """
    figure = blank(11.5, 3.4)
    longer, wider, descent = figure.subplots(1, 3)
    for colour, (name, study) in zip(PALETTE, studies.items(), strict=False):
        x = np.arange(len(study["longer"]))[1:]
        means, low, high = bands(study["longer"][1:])
        longer.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        longer.plot(x, means, "-o", color=colour, markersize=3.5, label=Path(name).name)
        longer.axvline(study["steps"], color=colour, linestyle=":", linewidth=1)
        if study["wider"]:
            counts = [entry["candidates"] for entry in study["wider"]]
            means, low, high = bands(study["wider"])
            wider.fill_between(counts, low, high, color=colour, alpha=0.12, linewidth=0)
            wider.plot(counts, means, "-o", color=colour, markersize=3.5)
        descents: dict[str, list[float]] = study["energies"]["descent"] if study["energies"] else {}
        for style, (tokens, energies) in zip("-:", descents.items(), strict=False):
            label = f"{Path(name).name}, {tokens}"
            descent.plot(energies, style, color=colour, linewidth=1.6, label=label)
    longer.set(title="thinking longer", xlabel="steps", ylabel="nats per token")
    wider.set(title="thinking wider", xlabel="candidates, the lowest energy is selected")
    descent.set(title="energy minus its final value", xlabel="steps")
    longer.legend(fontsize=7)
    if descent.lines:
        descent.legend(fontsize=7)
    return figure


@styled
def scaling_lines(result: Mapping[str, Any]) -> Figure:
    """Draw held-out loss over an axis and over training FLOPs, with fitted lines.

    Args:
        result: result of `run_scaling_study`.
    """
    figure = blank(9.5, 3.8)
    over_axis, over_flops = figure.subplots(1, 2, sharey=True)
    for colour, (name, model) in zip(PALETTE, result["models"].items(), strict=False):
        points = model["points"]
        means, low, high = bands([point["loss"] for point in points])
        for ax, quantity in ((over_axis, "x"), (over_flops, "flops")):
            x = np.array([point[quantity] for point in points])
            error = np.array([np.subtract(means, low), np.subtract(high, means)])
            ax.errorbar(x, means, error, fmt="o", color=colour, markersize=4, label=name)
            order = np.log(x)
            ax.plot(x, np.poly1d(np.polyfit(order, means, 1))(order), color=colour, linewidth=1)
    for ax, label in ((over_axis, result["label"]), (over_flops, "training FLOPs")):
        ax.set_xscale("log")
        ax.set_xlabel(label)
    over_axis.set_ylabel("held-out loss, nats")
    over_axis.legend()
    return figure
