"""Figures of studies across many conditions: curves with bands, a panel each."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ebt_policy.evaluation.figures import BLUE, GREY, INK, ORANGE, PALETTE, STYLE, blank, styled
from ebt_policy.io.output import write_atomic


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


@styled
def suite_overview(result: Mapping[str, Any]) -> Figure:
    """A row a policy of what `suite.summarise` returns: over all tasks, and success on each."""
    entries = result["entries"]
    tasks = list(entries[0]["tasks"])
    rows = np.arange(len(entries))
    family = f"{tasks[0].partition('-')[0]}-"  # metaworld-push is shown as push
    shared = len(tasks) > 1 and all(task.startswith(family) for task in tasks)
    shown = [task.removeprefix(family) if shared else task for task in tasks]
    wide, tall = 0.45 * max(len(tasks), 3), 0.38 * len(entries)
    names = 0.07 * max(len(entry["name"]) for entry in entries)
    figure = blank(4.2 + names + wide, 1.1 + tall + 0.06 * max(map(len, shown)))
    overall, each = figure.subplots(1, 2, sharey=True, width_ratios=(3.2, wide))

    means = (("iqm", "interquartile mean", BLUE, -0.12), ("mean", "mean", ORANGE, 0.12))
    for metric, label, colour, aside in means:
        low, high = np.array([entry[metric]["ci95"] for entry in entries]).T
        overall.hlines(rows + aside, low, high, color=colour, linewidth=2.4, alpha=0.5)
        at = [entry[metric]["mean"] for entry in entries]
        overall.plot(at, rows + aside, "o", color=colour, markersize=5.5, label=label)
    overall.set_yticks(rows, [entry["name"] for entry in entries])
    overall.set(title="success over all tasks", ylim=(len(entries) - 0.5, -0.5))
    overall.spines["left"].set_visible(False)
    overall.tick_params(axis="y", length=0)
    overall.grid(False, axis="y")
    figure.legend(*overall.get_legend_handles_labels(), loc="outside upper left", ncols=2)

    success = np.array([[e["tasks"][task]["success"]["mean"] for task in tasks] for e in entries])
    shades = LinearSegmentedColormap.from_list("success", [f"{BLUE}0a", BLUE])
    edges = (np.arange(len(tasks) + 1) - 0.5, np.arange(len(entries) + 1) - 0.5)
    each.pcolormesh(*edges, success, cmap=shades, vmin=0, vmax=1, edgecolor="white", linewidth=1.5)
    for (row, column), value in np.ndenumerate(success):
        colour = "white" if value > 0.6 else INK
        where = {"ha": "center", "va": "center", "color": colour, "fontsize": 8.5}
        each.text(column, row, f"{100 * value:.0f}", **where)
    each.set_xticks(np.arange(len(tasks)), shown, rotation=40, ha="right", rotation_mode="anchor")
    each.set_title("success on each, %")
    each.tick_params(length=0)
    each.spines[:].set_visible(False)
    each.grid(False)
    return figure


@styled
def delay_curves(result: Mapping[str, Any]) -> Figure:
    """Score and seams over the time that a prediction takes, of `benchmarks.delay`."""
    policies = list(dict.fromkeys(entry["policy"] for entry in result["entries"]))
    ways = list(dict.fromkeys(entry["way"] for entry in result["entries"]))
    ways.remove("offline")
    colours = dict(zip(ways, PALETTE, strict=False))
    figure = blank(11.5, 0.9 + 2.7 * len(policies))
    panels = {
        "score": "score",
        "success": "success",
        "seam_jump": "jump of the plan at seams, px",
        "seam_kink": "change of travel at seams, px",
    }
    grid = figure.subplots(len(policies), 4, sharex=True, sharey="col", squeeze=False)
    for row, policy in zip(grid, policies, strict=True):
        curves: dict[str, list[Any]] = {}
        for entry in result["entries"]:
            if entry["policy"] == policy:
                curves.setdefault(entry["way"], []).append(entry)
        (steps,) = curves.pop("offline")
        for ax, (metric, title) in zip(row, panels.items(), strict=True):
            for way, curve in curves.items():
                colour, x = colours[way], [entry["delay_ms"] for entry in curve]
                low, high = np.array([entry[metric]["ci95"] for entry in curve]).T
                ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
                means = [entry[metric]["mean"] for entry in curve]
                ax.plot(x, means, "-o", color=colour, markersize=3.5, linewidth=1.6, label=way)
            if metric in steps:
                label = "in steps, without time"
                ax.axhline(steps[metric]["mean"], color=GREY, linestyle="--", label=label)
            elif metric == "seam_kink":
                inside = [entry["kink"]["mean"] for entry in curves["asynchronous"]]
                ax.plot(x, inside, ":", color=GREY, label="within chunks")
            ax.set(title=title)
        row[0].set_ylabel(policy)
    for ax in grid[-1]:
        ax.set_xlabel("a prediction takes, ms")
    known: dict[str, Any] = {}
    for ax in grid[0]:
        handles, labels = ax.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=4)
    return figure


@styled
def energy_study(result: Mapping[str, Any]) -> Figure:
    """Score over candidates, areas under the ROC curve, and reliability, of `benchmarks.energy`."""
    figure = blank(11.5, 5.2)
    more, areas, trust = figure.subplots(1, 3, width_ratios=(1, 1.5, 1))
    counts = [row["candidates"] for row in result["candidates"]]
    for colour, metric in zip(PALETTE, ("score", "success"), strict=False):
        low, high = np.array([row[metric]["ci95"] for row in result["candidates"]]).T
        more.fill_between(counts, low, high, color=colour, alpha=0.12, linewidth=0)
        means = [row[metric]["mean"] for row in result["candidates"]]
        more.plot(counts, means, "-o", color=colour, markersize=4, label=metric)
    more.set_xscale("log", base=2)
    ticks = [f"{row['candidates']}\n{row['chunk_ms']:.0f} ms" for row in result["candidates"]]
    more.set_xticks(counts, ticks)
    more.set(title="Best of M", xlabel="candidates and time of a chunk")
    more.legend(loc="lower right")

    told = {f"unexpected: {what}": by for what, by in result["unexpected"].items()}
    told |= {f"failure, {what}": by for what, by in result["failure"].items()}
    names = list(next(iter(told.values())))
    rows = np.arange(len(told))[::-1]
    for k, (colour, name) in enumerate(zip(PALETTE, names, strict=False)):
        at = rows + 0.3 - 0.6 * k / (len(names) - 1)
        cells = [by[name] for by in told.values()]
        areas.hlines(at, *np.array([c["ci95"] for c in cells]).T, color=colour, alpha=0.5)
        areas.plot([c["mean"] for c in cells], at, "o", color=colour, markersize=4, label=name)
    areas.axvline(0.5, color=GREY, linewidth=1, linestyle="--")
    areas.set_yticks(rows, list(told))
    areas.set(title="What signals tell (area under the ROC curve; 0.5 is chance)")
    areas.grid(False, axis="y")
    handles, labels = areas.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)

    trust.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for colour, name in zip(PALETTE, names, strict=False):
        bins = result["reliability"]["unexpected"][name]["bins"]
        x, y = ([row["predicted"] for row in bins], [row["observed"]["mean"] for row in bins])
        trust.plot(x, y, "-o", color=colour, markersize=4)
    trust.set(
        title="Unexpected: reliability", xlabel="predicted chance", ylabel="how often it was so"
    )
    return figure


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


def bands(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Means, and lower and upper ends of the intervals, of entries ``{mean, ci95}``."""
    low, high = np.array([entry["ci95"] for entry in entries]).T
    return [entry["mean"] for entry in entries], low, high
