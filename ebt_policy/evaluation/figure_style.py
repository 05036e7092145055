"""One look for all figures: colours, fonts, and how they are saved.

Colours are Okabe and Ito's, which colour-blind readers can distinguish. Figures touch no global
state: no pyplot, no open windows.
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
INK = "#1f2328"  # replaced by the page's text colour in inline SVG
GREY = "#8b949e"  # readable on white and on near-black alike

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
    """Run a drawing function under `STYLE` and fix its layout, so that every save is the same."""

    @wraps(draw)
    def styled_draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            FigureCanvasAgg(figure).draw()  # ticks are made when first drawn: make them here
            figure.set_layout_engine("none")  # each further draw would shift the layout a little
            for ax in figure.axes:  # the layout's solver differs in the last bits from run to run
                ax.set_position(np.round(ax.get_position().bounds, 6).tolist())
        return figure

    return styled_draw


def blank(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def figure_to_svg(figure: Figure, prefix: str = "figure") -> str:
    """An `<svg>` element for inline HTML: page font, page text colour, ids under `prefix`.

    Give each figure of a page its own `prefix` (letters, digits, hyphens): inline SVGs share the
    page's ids and style sheets, and would otherwise clip and style one another.
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
    """Write a figure as an SVG file, whole or not at all."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    atomic_write(path, text.getvalue())


def finite_array(value: ArrayLike, ndim: int, name: str) -> np.ndarray:
    x = np.asarray(value, dtype=np.float64)
    if x.ndim != ndim or x.size == 0:
        raise ValueError(f"{name} must be a filled array with {ndim} axes; got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinity: nothing sensible can be drawn.")
    return x
