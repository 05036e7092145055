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
def thinking(thoughts: Mapping[str, Any]) -> Figure:
    """Surprisal over steps and guesses, and energies over the descent: name -> `language`'s."""
    figure = blank(11.5, 3.4)
    longer, wider, falls = figure.subplots(1, 3)
    for colour, (name, found) in zip(PALETTE, thoughts.items(), strict=False):
        x = np.arange(len(found["longer"]))[1:]
        means, low, high = bands(found["longer"][1:])
        longer.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        longer.plot(x, means, "-o", color=colour, markersize=3.5, label=Path(name).name)
        longer.axvline(found["steps"], color=colour, linestyle=":", linewidth=1)
        if found["wider"]:
            counts = [entry["candidates"] for entry in found["wider"]]
            means, low, high = bands(found["wider"])
            wider.fill_between(counts, low, high, color=colour, alpha=0.12, linewidth=0)
            wider.plot(counts, means, "-o", color=colour, markersize=3.5)
        for style, (what, energies) in zip("-:", _descents(found), strict=False):
            label = f"{Path(name).name}, {what}"
            falls.plot(energies, style, color=colour, linewidth=1.6, label=label)
    longer.set(title="thinking longer", xlabel="steps", ylabel="nats a token")
    wider.set(title="thinking wider", xlabel="guesses, of which the lowest energy is taken")
    falls.set(title="energy above its end", xlabel="steps")
    longer.legend(fontsize=7)
    if falls.lines:
        falls.legend(fontsize=7)
    return figure


def _descents(found: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    return list(found["energies"]["descent"].items()) if found["energies"] else []


@styled
def scaling_lines(result: Mapping[str, Any]) -> Figure:
    """Held-out loss over an axis and over training FLOPs, with the fitted lines, of `scaling`."""
    figure = blank(9.5, 3.8)
    over_axis, over_flops = figure.subplots(1, 2, sharey=True)
    for colour, (name, found) in zip(PALETTE, result["models"].items(), strict=False):
        points = found["points"]
        means, low, high = bands([point["loss"] for point in points])
        for ax, what in ((over_axis, "x"), (over_flops, "flops")):
            x = np.array([point[what] for point in points])
            error = np.array([np.subtract(means, low), np.subtract(high, means)])
            ax.errorbar(x, means, error, fmt="o", color=colour, markersize=4, label=name)
            order = np.log(x)
            ax.plot(x, np.poly1d(np.polyfit(order, means, 1))(order), color=colour, linewidth=1)
    for ax, label in ((over_axis, result["label"]), (over_flops, "FLOPs of training")):
        ax.set_xscale("log")
        ax.set_xlabel(label)
    over_axis.set_ylabel("held-out loss, nats")
    over_axis.legend()
    return figure
