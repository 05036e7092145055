"""Figures of image models."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ebt_policy.evaluation.figure_style import PALETTE, blank, styled
from ebt_policy.evaluation.figures import bands


@styled
def over_steps(thoughts: Mapping[str, Any]) -> Figure:
    """Signal to noise and energy over the steps of descents: name -> `restoring`'s."""
    figure = blank(8.5, 3.3)
    quality, energy = figure.subplots(1, 2)
    for colour, (name, found) in zip(cycle(PALETTE), thoughts.items(), strict=False):
        means, low, high = bands(found["longer"])
        x = np.arange(len(means))
        quality.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        quality.plot(x, means, "-o", color=colour, markersize=3.5, label=Path(name).name)
        quality.axvline(found["steps"], color=colour, linestyle=":", linewidth=1)
        if found["energy"]:
            energy.plot(found["energy"], "-o", color=colour, markersize=3.5)
    quality.set(title="peak signal to noise ratio, dB", xlabel="steps")
    energy.set(title="energy above its end", xlabel="steps")
    quality.legend(fontsize=7)
    return figure
