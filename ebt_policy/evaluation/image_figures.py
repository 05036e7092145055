"""Figures with images: grids, energy maps and video frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from ebt_policy.evaluation.figure_style import blank, styled
from ebt_policy.io.atomic_write import atomic_path

LINE = 20  # characters of a row name in one line
GAP = 4  # px between the panels of a video


class ImageRow(NamedTuple):
    """A row of images.

    Attributes:
        name: name beside the row; "" for none.
        images: (C, H, W) each, in [-1, 1]; values outside are clipped.
        titles: title of each image; empty for no titles.
    """

    name: str
    images: Sequence[Tensor]
    titles: Sequence[str]


@styled
def image_grid(strips: Sequence[ImageRow]) -> Figure:
    """Draw rows of images; names and titles equal to the row above are omitted."""
    columns = max(len(strip.images) for strip in strips)
    figure = blank(1.3 * columns + 0.3, 1.3 * len(strips) + 0.3)
    axes = figure.subplots(len(strips), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for i, (strip, row) in enumerate(zip(strips, axes, strict=True)):
        for ax, image in zip(row, strip.images, strict=False):
            _show(ax, image)
        above = strips[i - 1] if i else None
        if above is None or above.titles != strip.titles:
            for ax, title in zip(row, strip.titles, strict=False):
                ax.set_title(title, fontsize=7)
        if above is None or above.name != strip.name:
            _aside(row[0], Path(strip.name).name)
    return figure


@styled
def energy_maps(rows: Sequence[tuple[str, Sequence[Tensor], Sequence[Tensor]]]) -> Figure:
    """Draw images, and below each image the contributions of its patches to the energy.

    All energy maps have the same colour scale, and red is high.

    Args:
        rows: name, images (C, S, S) in [-1, 1] and contributions (R, R) of their patches.
    """
    columns = max(len(images) for _, images, _ in rows)
    figure = blank(1.1 * columns + 0.3, 2.2 * len(rows) + 0.2)
    axes = figure.subplots(2 * len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    shares = np.concatenate([share.numpy().ravel() for _, _, maps in rows for share in maps])
    low, middle, high = np.quantile(shares, [0.02, 0.5, 0.98])
    reach = max(high - middle, middle - low)
    for row, (name, images, maps) in enumerate(rows):
        above, below = axes[2 * row], axes[2 * row + 1]
        for pair in zip(above, below, images, maps, strict=False):
            top, bottom, image, share = pair
            _show(top, image)
            bottom.imshow(share.numpy(), cmap="coolwarm", vmin=middle - reach, vmax=middle + reach)
        _aside(above[0], name)
    return figure


def _show(ax: Axes, image: Tensor) -> None:
    pixels = np.clip(image.permute(1, 2, 0).numpy() * 0.5 + 0.5, 0, 1)
    grey = pixels.shape[2] == 1
    ax.imshow(pixels[..., 0] if grey else pixels, cmap="gray", vmin=0, vmax=1)


def _aside(ax: Axes, name: str) -> None:
    """Write the name of a row beside it, wrapped to the height of the row."""
    ax.text(
        -0.06,
        0.5,
        fill(name, LINE),
        rotation=90,
        ha="right",
        va="center",
        fontsize=7,
        transform=ax.transAxes,
    )


def side_by_side(panels: Mapping[str, np.ndarray], height: int) -> np.ndarray:
    """Return a video frame (H', W', 3) uint8 with images side by side, each with its title.

    Args:
        panels: title -> image (H, W, 3) uint8; all have the same size.
        height: H', the height that the images are resized to.
    """
    rows, columns, _ = next(iter(panels.values())).shape
    width = round(columns * height / rows)
    canvas = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (title, picture) in enumerate(panels.items()):
        panel = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        left = i * (width + GAP)
        canvas.paste(panel, (left, 0))
        draw.text((left + 5, 3), title, fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure atomically as PNG."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
