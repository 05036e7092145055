"""Pictures of energies, descents and scores.

Each function returns a `matplotlib.figure.Figure` and touches no global state: no pyplot, no open
windows. Colours are Okabe and Ito's, told apart by colour-blind readers, and viridis for energies,
where dark is low. `figure_to_svg` makes a picture for inline HTML that follows the page's text
colour in light and dark.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

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
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            FigureCanvasAgg(figure).draw()  # ticks are made when first drawn: make them here
            figure.set_layout_engine("none")  # each further draw would shift the layout a little
            for ax in figure.axes:  # the layout's solver differs in the last bits from run to run
                ax.set_position(np.round(ax.get_position().bounds, 6).tolist())
        return figure

    return drawn


def blank(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _array(value: ArrayLike, ndim: int, what: str) -> np.ndarray:
    x = np.asarray(value, dtype=np.float64)
    if x.ndim != ndim or x.size == 0:
        raise ValueError(f"{what} must be a filled array with {ndim} axes; got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{what} holds NaN or infinity: nothing sensible can be drawn.")
    return x


@styled
def forest_plot(comparison: Mapping[str, Any], metrics: Sequence[str]) -> Figure:
    """Dot and 95 % interval of each metric, one row an entry of a comparison."""
    entries = comparison["entries"]
    figure = blank(7.6, 0.95 + 0.36 * len(entries))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    rows = np.arange(len(entries))[::-1]
    for ax, metric in zip(axes, metrics, strict=True):
        for row, entry in zip(rows, entries, strict=True):
            lo, hi = entry[metric]["ci95"]
            ax.plot([lo, hi], [row, row], color=BLUE, linewidth=2.4, alpha=0.5)
            ax.plot(entry[metric]["mean"], row, "o", color=BLUE, markersize=6)
        ax.set_title(metric)
        ax.set_ylim(-0.6, len(entries) - 0.4)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes[0].set_yticks(rows, [entry["name"] for entry in entries])
    figure.supxlabel("mean and 95 % interval", fontsize=9)
    return figure


@styled
def score_histogram(entries: Sequence[tuple[Mapping[str, Any], Sequence[Any]]]) -> Figure:
    """Scores of the episodes, one panel an entry; `entries` are (summary, episodes).

    A mean hides whether a policy is middling or fails now and then; this shows which.
    Raises ValueError for no entries or entries without finite scores.
    """
    if not entries:
        raise ValueError("There are no entries to draw.")
    scores = [
        _array([e["score"] for e in episodes], 1, f"scores of '{summary['name']}'")
        for summary, episodes in entries
    ]
    every = np.concatenate(scores)
    bins = np.linspace(min(0.0, every.min()), max(1.0, every.max()), 21)
    figure = blank(6.4, 0.7 + 0.95 * len(entries))
    axes = figure.subplots(len(entries), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, (summary, _), values in zip(axes, entries, scores, strict=True):
        ax.hist(values, bins=bins.tolist(), color=BLUE, rwidth=0.88)
        ax.axvline(values.mean(), color=ORANGE, linewidth=1.6)
        ax.set_title(f"{summary['name']}, mean {values.mean():.3f}", fontsize=9.5)
        ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        ax.grid(False, axis="x")
    axes[-1].set_xlabel("score of an episode")
    figure.supylabel("episodes", fontsize=9.5)
    return figure


@styled
def energy_over_descent(traces: Mapping[str, ArrayLike]) -> Figure:
    """Energy of M candidates while they descend, one panel a name.

    `traces[name]` is (steps + 1, M), from the random start to the end, in the model's own units.
    Energies have no natural zero, so each panel measures from the lowest final energy: the
    candidate that wins ends at 0 and is drawn strongly; the others show the spread.
    """
    if not traces:
        raise ValueError("There are no traces to draw.")
    figure = blank(1.0 + 3.3 * len(traces), 3.0)
    axes = figure.subplots(1, len(traces), squeeze=False)[0]
    for ax, (name, trace) in zip(axes, traces.items(), strict=True):
        energy = _array(trace, 2, f"trace '{name}'")
        energy = energy - energy[-1].min()
        best = int(energy[-1].argmin())
        steps = np.arange(energy.shape[0])
        others = np.delete(energy, best, axis=1)
        if others.shape[1]:
            alpha = float(np.clip(6 / others.shape[1], 0.15, 0.7))
            lines = ax.plot(steps, others, color=GREY, linewidth=1.0, alpha=alpha)
            lines[0].set_label(f"the others ({others.shape[1]})")
        marker = "o" if energy.shape[0] <= 20 else ""
        ax.plot(steps, energy[:, best], color=BLUE, linewidth=2.2, marker=marker, markersize=4.5)
        ax.lines[-1].set_label("lowest at the end")
        ax.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
        ax.set_title(name)
        ax.set_xlabel("descent step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.legend(loc="upper right", fontsize=8.5)
    axes[0].set_ylabel("energy above the lowest final one")
    return figure


@styled
def energy_landscape(
    grid_x: ArrayLike,
    grid_y: ArrayLike,
    energy: ArrayLike,
    path: ArrayLike,
    candidates: ArrayLike,
    labels: tuple[str, str],
) -> Figure:
    """A plane through the landscape, the descent(s) in it and the candidates at the end.

    `grid_x` (W,), `grid_y` (H,), `energy` (H, W); `path` (K, 2), or (P, K, 2) for several descents;
    `candidates` (M, 2), M may be 0; `labels` of the x and the y axis. All points in grid units.
    """
    x, y = _array(grid_x, 1, "grid_x"), _array(grid_y, 1, "grid_y")
    surface = _array(energy, 2, "energy")
    if surface.shape != (y.size, x.size):
        raise ValueError(
            f"energy must be (len(grid_y), len(grid_x)) = {(y.size, x.size)}; got {surface.shape}."
        )
    descents = np.asarray(path, dtype=np.float64)
    descents = _array(descents[None] if descents.ndim == 2 else descents, 3, "path")
    points = np.asarray(candidates, dtype=np.float64).reshape(-1, 2)
    figure = blank(5.6, 4.5)
    ax = figure.subplots()
    ax.grid(False)
    # The descent happens low down while the rim is steep: low energies get more of the colours.
    low, high = float(surface.min()), float(surface.max())
    if low == high:
        raise ValueError("The energy is the same everywhere on the grid: there is no landscape.")
    levels = low + (high - low) * np.linspace(0.0, 1.0, 33) ** 2
    norm = PowerNorm(0.5, vmin=low, vmax=high)
    filled = ax.contourf(x, y, surface, levels=levels, norm=norm, cmap="viridis")
    filled.set_rasterized(True)  # hundreds of polygons would bloat an SVG and show seams
    ax.contour(x, y, surface, levels=levels[1::2], colors="white", linewidths=0.5, alpha=0.35)
    for i, descent in enumerate(descents):
        halo = [withStroke(linewidth=4.0, foreground="black", alpha=0.55)]
        ax.plot(*descent.T, "-o", color="white", linewidth=1.6, markersize=3, path_effects=halo)
        first = i == 0
        ends = {"color": "white", "markeredgecolor": "black", "linestyle": "none", "zorder": 5}
        ax.plot(*descent[0], "s", markersize=7, label="start" if first else None, **ends)
        ax.plot(*descent[-1], "*", markersize=14, label="end" if first else None, **ends)
    if points.size:
        ax.scatter(*points.T, s=26, color=ORANGE, edgecolors="white", linewidths=0.8, zorder=4)
        ax.collections[-1].set_label("candidates")
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.set_xlim(x.min(), x.max())
    ax.set_ylim(y.min(), y.max())
    figure.legend(loc="outside upper left", ncols=3, fontsize=9)
    _colorbar(figure, filled, ax, "energy")
    return figure


@styled
def training_curve(path: str | os.PathLike[str]) -> Figure:
    """Losses, and scores where there are any, over the training steps in a JSONL log.

    A line of the log is an object with `step` and numbers; names that contain "loss" go into the
    first panel, "score" or "success" into a second. A dense curve is drawn faint, under its running
    mean. Raises OSError when the log is missing, ValueError when it holds no loss.
    """
    records = _read_log(Path(path))
    losses = _curves(records, ("loss",))
    scores = _curves(records, ("score", "success"))
    if not losses:
        raise ValueError(f"{path} has no line with both 'step' and a loss: is it a training log?")
    figure = blank(6.4, 3.0 if not scores else 4.8)
    axes = figure.subplots(2 if scores else 1, 1, sharex=True, squeeze=False)[:, 0]
    for ax, curves in zip(axes, (losses, scores), strict=False):
        for color, (name, (steps, values)) in zip(PALETTE, curves.items(), strict=False):
            if len(steps) > 100:
                ones = np.ones(max(3, len(steps) // 50))
                # Divided by the same filter over ones, so that the ends are means of fewer points.
                smooth = np.convolve(values, ones, "same")
                smooth /= np.convolve(np.ones(len(values)), ones, "same")
                ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.25)
                ax.plot(steps, smooth, color=color, linewidth=2.0, label=name)
            else:
                ax.plot(steps, values, "-o", color=color, linewidth=1.8, markersize=4, label=name)
        ax.legend(loc="best", ncols=min(3, len(curves)), fontsize=9)
    if all((v > 0).all() and v.max() > 10 * v.min() for _, v in losses.values()):
        axes[0].set_yscale("log")
    axes[0].set_ylabel("loss")
    if scores:
        axes[1].set_ylabel("score")
    axes[-1].set_xlabel("training step")
    return figure


def _read_log(path: Path) -> list[dict[str, Any]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    records = []
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if i == len(lines) - 1:  # a killed run may leave half a line behind
                break
            raise ValueError(f"Line {i + 1} of {path} is not JSON: {error}.") from error
        if isinstance(record, dict):
            records.append(record)
    return records


def _curves(
    records: list[dict[str, Any]], words: tuple[str, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = {k: None for r in records for k in r if any(word in k.lower() for word in words)}
    curves = {}
    for name in names:
        pairs = [
            (r["step"], r[name])
            for r in records
            if isinstance(r.get("step"), int | float) and isinstance(r.get(name), int | float)
        ]
        pairs = [pair for pair in pairs if np.isfinite(pair).all()]
        if pairs:
            steps, values = np.array(pairs, dtype=np.float64).T
            curves[name] = (steps, values)
    return curves


@styled
def chunk_picture(
    frame: ArrayLike, chunks: ArrayLike, best: int, energies: ArrayLike, *, side: float = 512.0
) -> Figure:
    """Candidate action chunks over a camera frame, coloured by energy, the chosen one on top.

    `frame` (H, W, 3) uint8 or floats in [0, 1], seen from above; `chunks` (M, T, 2) positions in
    the workspace, which the square frame shows from 0 to `side` (Push-T: 512 px, y downward);
    `best` the index of the chosen chunk; `energies` (M,).
    """
    image = np.asarray(frame)
    paths, energy = _array(chunks, 3, "chunks"), _array(energies, 1, "energies")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"frame must be (H, W, 3); got {image.shape}.")
    if paths.shape[2] != 2 or paths.shape[0] != energy.size:
        raise ValueError(
            f"chunks must be (M, T, 2) with one energy each; got {paths.shape} and {energy.size}."
        )
    if not 0 <= best < energy.size:
        raise ValueError(f"best must be between 0 and {energy.size - 1}; got {best}.")
    figure = blank(5.4, 4.7)
    ax = figure.subplots()
    ax.imshow(image, extent=(0, side, side, 0), interpolation="antialiased")
    order = np.argsort(-energy)  # the lowest energies are drawn last, on top
    lines = LineCollection(
        list(paths[order]), array=energy[order], cmap="viridis", linewidths=1.3, alpha=0.75
    )
    lines.set_capstyle("round")
    ax.add_collection(lines)
    halo = [withStroke(linewidth=5.0, foreground="white")]
    ax.plot(*paths[best].T, color=ORANGE, linewidth=2.6, path_effects=halo, label="chosen")
    ax.plot(*paths[best].T, "o", color=ORANGE, markersize=3.5)
    ax.plot(*paths[best][0], "o", color="white", markeredgecolor=ORANGE, markersize=8)
    ax.set_xlim(0, side)
    ax.set_ylim(side, 0)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    figure.legend(loc="outside upper left", fontsize=9)
    _colorbar(figure, lines, ax, f"energy of {energy.size} candidates")
    return figure


def _colorbar(figure: Figure, mappable: Any, ax: Axes, label: str) -> None:
    bar = figure.colorbar(mappable, ax=ax, shrink=0.9, aspect=28, spacing="proportional")
    bar.locator = MaxNLocator(6)
    bar.update_ticks()
    bar.set_label(label)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if bar.solids is not None:
        bar.solids.set(alpha=1.0, rasterized=True, edgecolor="face")  # no seams in an SVG
    bar.ax.grid(False)


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
