"""Tables of the control loop: inference delay, and real time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.tables.cells import difference, interval, label_of
from ebt_policy.evaluation.tables import markdown
from ebt_policy.policies.metrics import METRICS

LENGTHS = ("transition_jump", "transition_second_difference", "second_difference")


def delay(result: Mapping[str, Any], ms: int = 300) -> str:
    """Return a table of the execution modes at one prediction time, ``ms``."""
    rows = []
    for entry in result["entries"]:
        if entry["delay_ms"] == ms:
            lengths = (entry[key] for key in LENGTHS)
            rows.append(
                (
                    f"{entry['policy']}, {label_of(entry['way'])}",
                    *(interval(entry[metric]) for metric in METRICS),
                    *(f"{length['mean']:.1f}" for length in lengths),
                )
            )
    header = (
        f"prediction time {ms} ms",
        *METRICS,
        "jump, px",
        "second difference, px",
        "within chunks, px",
    )
    return markdown(header, rows, left=1)


def real_time(result: Mapping[str, Any]) -> str:
    """Return a table of the control loop in steps, in real time and through ROS 2."""
    entries = result["entries"]

    def row(name: str, cell: Callable[[dict[str, Any]], str], first: str = "") -> tuple[str, ...]:
        return (name, first, *(cell(entry) for entry in entries.values()))

    def times(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda e: " / ".join(f"{e[key][p]:.1f}" for p in ("p50", "p95", "p99"))

    def real_time_difference(entry: dict[str, Any]) -> str:
        pair = entry.get("minus_in_steps")
        return difference(pair) if pair else ""

    rows = [
        row("score", lambda e: interval(e["score"]), interval(result["in_steps"]["score"])),
        row("difference from the score in steps", real_time_difference),
        row("success", lambda e: interval(e["success"])),
        row("ticks per second", lambda e: f"{e['rate_hz']:.2f}"),
        row("tick lateness, p50 / p95 / p99 ms", times("late_ms")),
        row("prediction latency, p50 / p95 / p99 ms", times("latency_ms")),
        row(
            "skipped / without a plan / clamped ticks",
            lambda e: f"{e['overruns']} / {e['ticks_without_plan']} / {e['clamped_ticks']}",
        ),
    ]
    header = (f"{result['episodes']} episodes", "Push-T in steps", *entries)
    return markdown(header, rows, left=1)
