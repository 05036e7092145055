"""Common style of all figures: colours, fonts and file formats.

The colours are based on the palette of Okabe and Ito, which colour-blind readers can distinguish.
Figures do not use pyplot, so they have no global state and open no windows.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ebt_policy.io.atomic_write import atomic_write

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
PALETTE = (BLUE, ORANGE, GREEN, PINK, "#E69F00", "#56B4E9", "#B8A800", "#808080")
INK = "#1f2328"  # replaced by the text colour of the page in inline SVG
GREY = "#8b949e"  # readable on white and on nearly black pages

STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.09,
    "svg.fonttype": "none",
    "svg.hashsalt": "ebt_policy",  # the same figure gives the same bytes
}


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Apply `STYLE` to a drawing function and fix the layout, so that files are reproducible."""

    @wraps(draw)
    def styled_draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            FigureCanvasAgg(figure).draw()  # creates the ticks, while the style is active
            figure.set_layout_engine("none")  # another draw would shift the layout
            for ax in figure.axes:  # the layout solver is not exactly reproducible
                ax.set_position(np.round(ax.get_position().bounds, 6).tolist())
        return figure

    return styled_draw


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def figure_to_svg(figure: Figure, prefix: str = "figure") -> str:
    """Return a figure as an `<svg>` element for HTML, with the page's font and text colour.

    Args:
        figure: the figure.
        prefix: prefix of all ids (letters, digits, hyphens), unique for each figure of a page.
            Inline SVGs share the ids and style sheets of the page, so that figures with equal ids
            would affect each other.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=160)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace("*{", f"#{prefix} *{{")
    svg = svg.replace("<svg ", f'<svg id="{prefix}" ', 1).replace(INK, "currentColor")
    return re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure atomically as an SVG or PNG file, depending on the suffix of the path."""
    suffix = os.path.splitext(path)[1]
    content = io.BytesIO()
    with mpl.rc_context(STYLE):
        if suffix == ".png":
            figure.savefig(content, format="png", dpi=150)
        else:
            figure.savefig(content, format="svg", metadata={"Date": None})
    atomic_write(path, content.getvalue())


def finite_array(value: ArrayLike, ndim: int, name: str) -> np.ndarray:
    """Return a non-empty array of finite numbers with `ndim` axes, or raise ValueError."""
    x = np.asarray(value, dtype=np.float64)
    if x.ndim != ndim or x.size == 0:
        raise ValueError(f"{name} must be a non-empty array with {ndim} axes; got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} contains NaN or infinity, which cannot be drawn.")
    return x
