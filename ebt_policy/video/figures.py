"""Figures of video models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ebt_policy.evaluation.figure_style import PALETTE, blank, styled
from ebt_policy.evaluation.figures import bands


@styled
def error_figure(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw error and energy over the context, and error over steps.

    Args:
        entries: entries of ``summary.json``.
    """
    figure = blank(11, 3.3)
    error, energy, steps = figure.subplots(1, 3)
    for colour, entry in zip(cycle(PALETTE), entries, strict=False):
        name = Path(entry["name"]).name
        x = np.arange(1, len(entry["by_place"]) + 1)
        error.plot(x, entry["by_place"], color=colour, label=name)
        if "energy_at_the_start" in entry:
            energy.plot(x, entry["energy_at_the_start"], color=colour)
        if "thinking" in entry:
            means, low, high = bands(entry["thinking"]["longer"])
            x = np.arange(1, len(means) + 1)
            steps.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            steps.plot(x, means, "-o", color=colour, markersize=3.5)
            steps.axvline(entry["thinking"]["steps"], color=colour, linestyle=":", linewidth=1)
    error.set(title="error", xlabel="context frames")
    energy.set(title="energy at the start of clips", xlabel="context frames")
    steps.set(title="error", xlabel="steps")
    error.legend(fontsize=7)
    return figure
