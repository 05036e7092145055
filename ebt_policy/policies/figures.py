"""Figures of policies: landscapes, candidate chunks, scores, robustness and suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ebt_policy.evaluation.figure_style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALETTE,
    blank,
    finite_array,
    styled,
)


@styled
def score_histogram(entries: Sequence[tuple[Mapping[str, Any], Sequence[Any]]]) -> Figure:
    """Draw a histogram of episode scores, one panel for each entry.

    Unlike a mean, it shows whether a policy is mediocre in all episodes or fails in some of them.

    Args:
        entries: (summary, episodes) of each entry.

    Raises:
        ValueError: there are no entries, or an entry has no finite scores.
    """
    if not entries:
        raise ValueError("There are no entries to draw.")
    scores = [
        finite_array([e["score"] for e in episodes], 1, f"scores of '{summary['name']}'")
        for summary, episodes in entries
    ]
    all_scores = np.concatenate(scores)
    bins = np.linspace(min(0.0, all_scores.min()), max(1.0, all_scores.max()), 21)
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
    """Draw the energy of M candidates during the descent, one panel for each name.

    Energies have no absolute zero, so each panel shows the energy above the lowest final energy.
    The best candidate ends at 0 and has a thick line; the others show the spread.

    Args:
        traces: name -> (steps + 1, M) energies in the model's units, from the start to the end.
    """
    if not traces:
        raise ValueError("There are no traces to draw.")
    figure = blank(1.0 + 3.3 * len(traces), 3.0)
    axes = figure.subplots(1, len(traces), squeeze=False)[0]
    for ax, (name, trace) in zip(axes, traces.items(), strict=True):
        energy = finite_array(trace, 2, f"trace '{name}'")
        energy = energy - energy[-1].min()
        best = int(energy[-1].argmin())
        steps = np.arange(energy.shape[0])
        other_energies = np.delete(energy, best, axis=1)
        if other_energies.shape[1]:
            alpha = float(np.clip(6 / other_energies.shape[1], 0.15, 0.7))
            lines = ax.plot(steps, other_energies, color=GREY, linewidth=1.0, alpha=alpha)
            lines[0].set_label(f"other candidates ({other_energies.shape[1]})")
        marker = "o" if energy.shape[0] <= 20 else ""
        ax.plot(steps, energy[:, best], color=BLUE, linewidth=2.2, marker=marker, markersize=4.5)
        ax.lines[-1].set_label("lowest final energy")
        ax.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
        ax.set_title(name)
        ax.set_xlabel("descent step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.legend(loc="upper right", fontsize=8.5)
    axes[0].set_ylabel("energy above the lowest final energy")
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
    """Draw a plane through the landscape, with descents and final candidates.

    Args:
        grid_x, grid_y: (W,) and (H,) coordinates of the grid.
        energy: (H, W) energies of the grid points.
        path: (K, 2) points of a descent, or (P, K, 2) for several descents, in grid units.
        candidates: (M, 2) final candidates in grid units; M may be 0.
        labels: labels of the x and the y axis.
    """
    x, y = finite_array(grid_x, 1, "grid_x"), finite_array(grid_y, 1, "grid_y")
    surface = finite_array(energy, 2, "energy")
    if surface.shape != (y.size, x.size):
        raise ValueError(
            f"energy must be (len(grid_y), len(grid_x)) = {(y.size, x.size)}; got {surface.shape}."
        )
    descents = np.asarray(path, dtype=np.float64)
    descents = finite_array(descents[None] if descents.ndim == 2 else descents, 3, "path")
    points = np.asarray(candidates, dtype=np.float64).reshape(-1, 2)
    figure = blank(5.6, 4.5)
    ax = figure.subplots()
    ax.grid(False)
    # Descents take place at low energies and the rim is steep, so low energies get more colours.
    low, high = float(surface.min()), float(surface.max())
    if low == high:
        raise ValueError("The energy is the same at all grid points: there is nothing to draw.")
    levels = low + (high - low) * np.linspace(0.0, 1.0, 33) ** 2
    norm = PowerNorm(0.5, vmin=low, vmax=high)
    surface_contours = ax.contourf(x, y, surface, levels=levels, norm=norm, cmap="viridis")
    surface_contours.set_rasterized(True)  # hundreds of polygons make large SVGs with visible seams
    ax.contour(x, y, surface, levels=levels[1::2], colors="white", linewidths=0.5, alpha=0.35)
    for i, descent in enumerate(descents):
        halo = [withStroke(linewidth=4.0, foreground="black", alpha=0.55)]
        ax.plot(*descent.T, "-o", color="white", linewidth=1.6, markersize=3, path_effects=halo)
        first = i == 0
        marker_style = {
            "color": "white",
            "markeredgecolor": "black",
            "linestyle": "none",
            "zorder": 5,
        }
        ax.plot(*descent[0], "s", markersize=7, label="start" if first else None, **marker_style)
        ax.plot(*descent[-1], "*", markersize=14, label="end" if first else None, **marker_style)
    if points.size:
        ax.scatter(*points.T, s=26, color=ORANGE, edgecolors="white", linewidths=0.8, zorder=4)
        ax.collections[-1].set_label("candidates")
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.set_xlim(x.min(), x.max())
    ax.set_ylim(y.min(), y.max())
    figure.legend(loc="outside upper left", ncols=3, fontsize=9)
    _colorbar(figure, surface_contours, ax, "energy")
    return figure


@styled
def chunk_picture(
    frame: ArrayLike, chunks: ArrayLike, best: int, energies: ArrayLike, *, side: float = 512.0
) -> Figure:
    """Draw candidate chunks over a camera frame, coloured by energy, the selected one on top.

    Args:
        frame: (H, W, 3) uint8 or floats in [0, 1], a square view from above.
        chunks: (M, T, 2) positions in the workspace, which the frame shows from 0 to ``side``.
        best: index of the selected chunk.
        energies: (M,) energies of the chunks.
        side: side of the workspace (Push-T: 512 px); y points downward.
    """
    image = np.asarray(frame)
    paths, energy = finite_array(chunks, 3, "chunks"), finite_array(energies, 1, "energies")
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
    order = np.argsort(-energy)  # lowest energies last, so that they are on top
    lines = LineCollection(
        list(paths[order]), array=energy[order], cmap="viridis", linewidths=1.3, alpha=0.75
    )
    lines.set_capstyle("round")
    ax.add_collection(lines)
    halo = [withStroke(linewidth=5.0, foreground="white")]
    ax.plot(*paths[best].T, color=ORANGE, linewidth=2.6, path_effects=halo, label="selected")
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


@styled
def robustness_curves(result: Mapping[str, Any]) -> Figure:
    """Draw success over perturbation strength, one panel a kind (see `robustness.summarize`)."""
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
    fitting = int(figure.get_figwidth() / (0.5 + 0.07 * max(map(len, labels))))  # inches
    ncols = min(max(fitting, 1), 4, len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
    return figure


@styled
def suite_overview(result: Mapping[str, Any]) -> Figure:
    """Draw the success of each policy over all tasks and on each task (see `suite.summarize`)."""
    entries = result["entries"]
    tasks = list(entries[0]["tasks"])
    rows = np.arange(len(entries))
    family = f"{tasks[0].partition('-')[0]}-"  # metaworld-push is shown as push
    shared = len(tasks) > 1 and all(task.startswith(family) for task in tasks)
    task_labels = [task.removeprefix(family) if shared else task for task in tasks]
    wide, tall = 0.45 * max(len(tasks), 3), 0.38 * len(entries)
    names = 0.07 * max(len(entry["name"]) for entry in entries)
    figure = blank(4.2 + names + wide, 1.1 + tall + 0.06 * max(map(len, task_labels)))
    overall, per_task = figure.subplots(1, 2, sharey=True, width_ratios=(3.2, wide))

    means = (("iqm", "interquartile mean", BLUE, -0.12), ("mean", "mean", ORANGE, 0.12))
    for metric, label, colour, offset in means:
        low, high = np.array([entry[metric]["ci95"] for entry in entries]).T
        overall.hlines(rows + offset, low, high, color=colour, linewidth=2.4, alpha=0.5)
        centers = [entry[metric]["mean"] for entry in entries]
        overall.plot(centers, rows + offset, "o", color=colour, markersize=5.5, label=label)
    overall.set_yticks(rows, [entry["name"] for entry in entries])
    overall.set(title="success over all tasks", ylim=(len(entries) - 0.5, -0.5))
    overall.spines["left"].set_visible(False)
    overall.tick_params(axis="y", length=0)
    overall.grid(False, axis="y")
    figure.legend(*overall.get_legend_handles_labels(), loc="outside upper left", ncols=2)

    success = np.array([[e["tasks"][task]["success"]["mean"] for task in tasks] for e in entries])
    shades = LinearSegmentedColormap.from_list("success", [f"{BLUE}0a", BLUE])
    edges = (np.arange(len(tasks) + 1) - 0.5, np.arange(len(entries) + 1) - 0.5)
    per_task.pcolormesh(
        *edges, success, cmap=shades, vmin=0, vmax=1, edgecolor="white", linewidth=1.5
    )
    for (row, column), value in np.ndenumerate(success):
        colour = "white" if value > 0.6 else INK
        text_style = {"ha": "center", "va": "center", "color": colour, "fontsize": 8.5}
        per_task.text(column, row, f"{100 * value:.0f}", **text_style)
    per_task.set_xticks(
        np.arange(len(tasks)), task_labels, rotation=40, ha="right", rotation_mode="anchor"
    )
    per_task.set_title("success on each task, %")
    per_task.tick_params(length=0)
    per_task.spines[:].set_visible(False)
    per_task.grid(False)
    return figure
