"""What a run leaves to look at: ``summary.json``, ``table.md``, ``timeline.svg``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import ebt_policy
from ebt_policy.evaluation.figure_style import GREY, INK, PALETTE, blank, save_figure, styled
from ebt_policy.evaluation.statistics import mean_ci, percentiles, success_rate
from ebt_policy.io.output import write_atomic
from ebt_policy.real_robot.episode_runner import Episode
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.supervisor import SAID, State

RESULTS = ("summary.json", "table.md", "timeline.svg", "videos")
SHADES = {State.HOLD: "#f2c14e", State.FAULT: "#d64545"}


def summarize(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Numbers over all episodes, times in ms; score and success of simulated robots."""
    rows = [episode.summary() for episode in episodes if episode.ticks]
    ticks = [tick for episode in episodes for tick in episode.ticks]
    latencies = [1e3 * s for episode in episodes for s in episode.latencies]
    jumps = [j for episode in episodes for j in episode.jumps]
    kinks = [k for episode in episodes for k in episode.kinks]
    surprises = [x for episode in episodes for x in episode.surprises]
    scored = [row for row in rows if row["score"] is not None]
    stops = Counter((change.state, change.reason) for e in episodes for change in e.stops)
    return {
        "episodes": len(rows),
        "completed": sum(episode.completed for episode in episodes if episode.ticks),
        "stops": [
            {"state": str(state), "reason": reason, "times": times}
            for (state, reason), times in stops.most_common()
        ],
        "score": mean_ci([row["score"] for row in scored]) if scored else None,
        "success": success_rate([row["success"] for row in scored]) if scored else None,
        "rate_hz": float(np.mean([row["rate_hz"] for row in rows])) if rows else None,
        "late_ms": percentiles([1e3 * tick.late for tick in ticks]) if ticks else None,
        "latency_ms": percentiles(latencies) if latencies else None,
        "surprise": percentiles(surprises) if surprises else None,
        "ticks": len(ticks),
        "overruns": sum(row["overruns"] for row in rows),
        "starved": sum(row["starved"] for row in rows),
        "clamped": sum(row["clamped"] for row in rows),
        "seam_jump": float(np.mean(jumps)) if jumps else None,
        "seam_kink": float(np.mean(kinks)) if kinks else None,
        "each": rows,
    }


def table(summary: dict[str, Any]) -> str:
    """The same as Markdown."""

    def times(entry: dict[str, float] | None) -> str:
        if entry is None:
            return "none"
        return f"p50 {entry['p50']:.1f}, p95 {entry['p95']:.1f}, p99 {entry['p99']:.1f}"

    rows = [("episodes", str(summary["episodes"]))]
    if summary["stops"]:
        ended = summary["episodes"] - summary["completed"]
        rows.append(("ended by a hold or a stop", f"{ended} of {summary['episodes']}"))
    for stop in summary["stops"]:
        again = f" ({stop['times']} times)" if stop["times"] > 1 else ""
        rows.append((SAID[State(stop["state"])], stop["reason"].replace("|", r"\|") + again))
    for name in ("score", "success"):
        if (found := summary[name]) is not None:
            low, high = found["ci95"]
            rows.append((name, f"{found['mean']:.3f} [{low:.3f}, {high:.3f}]"))
    rows += [
        ("ticks a second", "" if summary["rate_hz"] is None else f"{summary['rate_hz']:.2f}"),
        ("ticks late by, ms", times(summary["late_ms"])),
        ("a chunk takes, ms", times(summary["latency_ms"])),
        ("ticks", str(summary["ticks"])),
        ("left out (overruns)", str(summary["overruns"])),
        ("without a plan (starved)", str(summary["starved"])),
        ("limited", str(summary["clamped"])),
    ]
    if summary["surprise"] is not None:
        rows.append(("surprise", times(summary["surprise"])))
    lines = ["| | |", "| :-- | --: |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


@styled
def timeline(episodes: Sequence[Episode], names: Sequence[str]) -> Figure:
    """Commands, how late ticks were, and the states, over time, of the first episode."""
    ticks = episodes[0].ticks
    start = ticks[0].due
    time = np.array([tick.due - start for tick in ticks])
    figure = blank(9, 4.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    commands = np.array(
        [np.full(len(names), np.nan) if t.command is None else t.command for t in ticks]
    )
    for i, (name, colour) in enumerate(zip(names, PALETTE, strict=False)):
        above.plot(time, commands[:, i], label=name, color=colour, linewidth=1.4)
    limited = [i for i, tick in enumerate(ticks) if tick.limited]
    if limited:
        above.plot(
            time[limited], commands[limited, 0], "x", color=INK, label="limited", markersize=4
        )
    for i, tick in enumerate(ticks):
        if tick.state in SHADES:
            end = time[i + 1] if i + 1 < len(time) else time[i]
            above.axvspan(time[i], end, color=SHADES[tick.state], alpha=0.3, linewidth=0)
    above.set_title("commands; shaded where the robot was held (yellow) or stopped (red)")
    above.legend(loc="upper right")
    below.plot(time, [1e3 * tick.late for tick in ticks], linewidth=1, color=GREY)
    below.set(title="how late a tick began, ms", xlabel="time, s")
    return figure


def write_run(
    output: Path,
    name: str,
    params: int,
    robot: Robot,
    given: Any,
    episodes: Sequence[Episode],
    summary: dict[str, Any],
    command: str,
) -> None:
    """Write all of it into a folder, the numbers first.

    Args:
        given: the options of the run.
        summary: see `summarize`.

    Raises:
        OSError: the disk refused.
    """
    content = {
        "robot": robot.name,
        "policy": name,
        "params": params,
        "mode": given.mode,
        "speed": given.speed,
        "execution": asdict(given.execution),
        **summary,
        "command": command,
        "version": ebt_policy.__version__,
    }
    write_atomic(output / "summary.json", json.dumps(content, indent=2) + "\n")
    write_atomic(output / "table.md", table(summary))
    if episodes and episodes[0].ticks:
        save_figure(timeline(episodes, robot.action), output / "timeline.svg")
