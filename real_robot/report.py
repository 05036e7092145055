"""The results of a run: ``summary.json``, ``table.md``, ``timeline.svg``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ebt_policy.evaluation.figure_style import GREY, INK, PALETTE, blank, save_figure, styled
from ebt_policy.evaluation.provenance import provenance
from ebt_policy.evaluation.statistics import mean_ci, percentiles, success_rate
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.real_robot.episode_result import EpisodeResult, mean_or_none, percentiles_ms
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.run_options import RunOptions
from ebt_policy.real_robot.supervisor import STATE_WORDS, State

RESULT_NAMES = ("summary.json", "table.md", "timeline.svg", "videos")
SHADES = {State.HOLD: "#f2c14e", State.FAULT: "#d64545"}


def summarize(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return statistics of all episodes by name, times in ms.

    Score and success are None for a robot that is not simulated. "each" has the summaries of the
    episodes.
    """
    rows = [episode.summary() for episode in episodes if episode.ticks]
    ticks = [tick for episode in episodes for tick in episode.ticks]
    latencies = [s for episode in episodes for s in episode.latencies]
    jumps = [x for episode in episodes for x in episode.transition_jumps]
    differences = [x for episode in episodes for x in episode.transition_second_differences]
    inconsistencies = [x for episode in episodes for x in episode.plan_inconsistencies]
    costs = [x for episode in episodes for x in episode.plan_costs]
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
        "rate_hz": mean_or_none([row["rate_hz"] for row in rows]),
        "late_ms": percentiles_ms([tick.late for tick in ticks]),
        "latency_ms": percentiles_ms(latencies),
        "plan_inconsistency": percentiles(inconsistencies) if inconsistencies else None,
        "plan_cost": percentiles(costs) if costs else None,
        "ticks": len(ticks),
        "overruns": sum(row["overruns"] for row in rows),
        "ticks_without_plan": sum(row["ticks_without_plan"] for row in rows),
        "clamped_ticks": sum(row["clamped_ticks"] for row in rows),
        "human_ticks": sum(row["human_ticks"] for row in rows),
        "interventions": sum(row["interventions"] for row in rows),
        "transition_jump": mean_or_none(jumps),
        "transition_second_difference": mean_or_none(differences),
        "each": rows,
    }


def markdown_table(summary: dict[str, Any]) -> str:
    """Format a summary (see `summarize`) as a Markdown table."""

    def format_percentiles(entry: dict[str, float] | None) -> str:
        if entry is None:
            return "none"
        return f"p50 {entry['p50']:.1f}, p95 {entry['p95']:.1f}, p99 {entry['p99']:.1f}"

    rows = [("episodes", str(summary["episodes"]))]
    if summary["stops"]:
        ended = summary["episodes"] - summary["completed"]
        rows.append(("ended by a hold or a stop", f"{ended} of {summary['episodes']}"))
    for stop in summary["stops"]:
        count = f" ({stop['times']} times)" if stop["times"] > 1 else ""
        rows.append((STATE_WORDS[State(stop["state"])], stop["reason"].replace("|", r"\|") + count))
    for name in ("score", "success"):
        if (mean := summary[name]) is not None:
            low, high = mean["ci95"]
            rows.append((name, f"{mean['mean']:.3f} [{low:.3f}, {high:.3f}]"))
    rows += [
        ("ticks per second", "" if summary["rate_hz"] is None else f"{summary['rate_hz']:.2f}"),
        ("tick lateness, ms", format_percentiles(summary["late_ms"])),
        ("prediction latency, ms", format_percentiles(summary["latency_ms"])),
        ("ticks", str(summary["ticks"])),
        ("skipped ticks (overruns)", str(summary["overruns"])),
        ("ticks without a plan", str(summary["ticks_without_plan"])),
        ("clamped ticks", str(summary["clamped_ticks"])),
    ]
    if 0 < summary["human_ticks"] < summary["ticks"]:
        rows.append(("interventions", str(summary["interventions"])))
        rows.append(("ticks by a person", str(summary["human_ticks"])))
    if summary["plan_inconsistency"] is not None:
        rows.append(("plan inconsistency", format_percentiles(summary["plan_inconsistency"])))
    if summary["plan_cost"] is not None:
        rows.append(("cost of a plan, nats", format_percentiles(summary["plan_cost"])))
    lines = ["| | |", "| :-- | --: |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


@styled
def timeline(episodes: Sequence[EpisodeResult], names: Sequence[str]) -> Figure:
    """Draw commands, tick lateness and states of the first episode over time.

    Args:
        episodes: at least one episode.
        names: names of the entries of a command.
    """
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
    clamped = [i for i, tick in enumerate(ticks) if tick.is_clamped]
    if clamped:
        above.plot(
            time[clamped], commands[clamped, 0], "x", color=INK, label="clamped", markersize=4
        )
    for i, tick in enumerate(ticks):
        if tick.state in SHADES:
            end = time[i + 1] if i + 1 < len(time) else time[i]
            above.axvspan(time[i], end, color=SHADES[tick.state], alpha=0.3, linewidth=0)
    above.set_title("commands; shaded where the robot was held (yellow) or stopped (red)")
    above.legend(loc="upper right")
    below.plot(time, [1e3 * tick.late for tick in ticks], linewidth=1, color=GREY)
    below.set(title="tick lateness, ms", xlabel="time, s")
    return figure


def write_results(
    output: Path,
    name: str,
    parameter_count: int,
    robot: Robot,
    run_options: RunOptions,
    episodes: Sequence[EpisodeResult],
    summary: dict[str, Any],
    command: str,
) -> None:
    """Write summary, table and timeline of a run into a folder, in this order.

    Args:
        output: folder of the results.
        name, parameter_count: attributes of the action source, see `NamedSource`.
        summary: see `summarize`.
        command: command line of the run.

    Raises:
        OSError: the results cannot be written.
    """
    content = {
        "robot": robot.name,
        "policy": name,
        "params": parameter_count,
        "mode": run_options.mode,
        "speed": run_options.speed,
        "execution": asdict(run_options.execution),
        **summary,
        "command": command,
        **provenance(),
    }
    atomic_write(output / "summary.json", json.dumps(content, indent=2) + "\n")
    atomic_write(output / "table.md", markdown_table(summary))
    if episodes and episodes[0].ticks:
        save_figure(timeline(episodes, robot.action), output / "timeline.svg")
