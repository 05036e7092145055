"""Pictures of what models make of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ebt_policy.evaluation.figures import PALETTE, blank, styled


@styled
def image_grid(rows: Sequence[Sequence[Any]]) -> Figure:
    """Rows of a label and images (C, H, W) in [-1, 1], of which the last is the clean one where the
    row ends with the steps that the others were seen at."""
    titled = isinstance(rows[0][-1], list)
    images = [row[1:-1] if titled else row[1:] for row in rows]
    columns = max(map(len, images))
    figure = blank(1.3 * columns + 0.3, 1.3 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for i, (row, shown) in enumerate(zip(rows, images, strict=True)):
        titles = [f"step {k}" if k else "noisy" for k in row[-1]] + ["clean"] if titled else []
        for j, image in enumerate(shown):
            pixels = np.clip(np.asarray(image).transpose(1, 2, 0) * 0.5 + 0.5, 0, 1)
            grey = pixels.shape[2] == 1
            axes[i, j].imshow(
                pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=1
            )
            if titles and (i == 0 or rows[i - 1][0] != row[0]):
                axes[i, j].set_title(titles[j], fontsize=7)
        if row[0] and (i == 0 or rows[i - 1][0] != row[0]):
            name = Path(row[0]).name
            axes[i, 0].text(
                -0.06, 0.5, name, rotation=90, ha="right", va="center", fontsize=7,
                transform=axes[i, 0].transAxes,
            )  # fmt: skip
    return figure


@styled
def over_steps(thoughts: Mapping[str, Any]) -> Figure:
    """Signal to noise and energy over the steps of descents: name -> `restoring`'s."""
    figure = blank(8.5, 3.3)
    quality, energy = figure.subplots(1, 2)
    for colour, (name, found) in zip(PALETTE, thoughts.items(), strict=False):
        low, high = np.array([one["ci95"] for one in found["longer"]]).T
        x = np.arange(len(low))
        quality.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        means = [one["mean"] for one in found["longer"]]
        quality.plot(x, means, "-o", color=colour, markersize=3.5, label=Path(name).name)
        quality.axvline(found["steps"], color=colour, linestyle=":", linewidth=1)
        if found["energy"]:
            energy.plot(found["energy"], "-o", color=colour, markersize=3.5)
    quality.set(title="peak signal to noise ratio, dB", xlabel="steps")
    energy.set(title="energy above its end", xlabel="steps")
    quality.legend(fontsize=7)
    return figure


def png(figure: Figure, path: Path) -> None:
    """Write it beside the report, to be looked at by itself."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)
