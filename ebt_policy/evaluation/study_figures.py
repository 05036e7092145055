"""Figures of studies across many conditions: curves with bands, a panel each."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ebt_policy.evaluation.figures import PALETTE, STYLE, blank, styled
from ebt_policy.evaluation.summary import write_atomic


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as an SVG file, whole or not at all."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    write_atomic(path, text.getvalue())


@styled
def recovery_curves(result: Mapping[str, Any]) -> Figure:
    """Success over the strength of each perturbation, of what `recovery.summarise` returns."""
    entries = [entry for entry in result["entries"] if entry["unit"] is not None]
    at_rest = {e["name"]: e for e in result["entries"] if e["kind"] == "undisturbed"}
    panels = list(dict.fromkeys(entry["kind"] for entry in entries))
    if not panels:
        raise ValueError("There are no perturbations to draw.")
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = blank(0.6 + 2.5 * columns, 0.9 + 2.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax, kind in zip(axes, panels, strict=False):
        for colour, name in zip(PALETTE, at_rest, strict=False):
            curve = [at_rest[name]] + [
                e for e in entries if e["kind"] == kind and e["name"] == name
            ]
            x = [entry["strength"] for entry in curve]
            low, high = np.array([entry["success"]["ci95"] for entry in curve]).T
            ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            mean = [entry["success"]["mean"] for entry in curve]
            ax.plot(x, mean, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name)
        unit = next(entry["unit"] for entry in entries if entry["kind"] == kind)
        ax.set_title(kind.replace("_", " "))
        ax.set_xlabel(unit)
        ax.set_ylim(0, 1)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for row in range(rows):
        axes[row * columns].set_ylabel("success")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure
