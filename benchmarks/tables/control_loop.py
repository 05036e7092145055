"""Tables of the control loop: inference delay, real time, planning at every tick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.tables.cells import Result, difference, interval, label_of
from benchmarks.tables.entry_labels import entry_label
from ebt_policy.evaluation.tables import markdown
from ebt_policy.policies.metrics import METRICS

STREAMING_METHODS = {
    "chunked": "chunks of eight actions",
    "resampled": "resampled at every tick",
    "kept": "last plan kept",
    "correlated noise": "correlated noise",
    "warm start": "warm start",
}
STREAMING_REFERENCE = "ebt_12500, kept"  # The differences are of it minus each other entry.
STREAMING_CONDITIONS = {
    "undisturbed": "undisturbed",
    "kick 50": "kick",
    "agent 100": "displaced agent",
    "delay 2": "late observations",
}
LENGTHS = ("transition_jump", "transition_second_difference", "second_difference")


def percentiles(key: str) -> Callable[[Result], str]:
    """Return a function that formats the percentiles of a time in an entry, if it has them."""

    def cell(entry: Result) -> str:
        times = entry[key]
        return "" if times is None else " / ".join(f"{times[p]:.1f}" for p in ("p50", "p95", "p99"))

    return cell


RECORD_TRAIN_RUN_ROWS: dict[str, Callable[[Result], str]] = {
    "recorded demonstrations": lambda e: f"{e['recorded']['episodes']}",
    "recorded ticks": lambda e: f"{e['recorded']['rows']:,}",
    "score": lambda e: interval(e["score"]),
    "success": lambda e: interval(e["success"]),
    "ticks per second": lambda e: "" if e["rate_hz"] is None else f"{e['rate_hz']:.2f}",
    "tick lateness, p50 / p95 / p99 ms": percentiles("late_ms"),
    "prediction latency, p50 / p95 / p99 ms": percentiles("latency_ms"),
}


def delay(result: Result, ms: int = 300) -> str:
    """Return a table of the execution modes at one prediction time, ``ms``."""
    rows = []
    for entry in result["entries"]:
        if entry["delay_ms"] == ms:
            lengths = (entry[key] for key in LENGTHS)
            rows.append(
                (
                    f"{entry_label(entry['policy'])}, {label_of(entry['way'])}",
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


def real_time(result: Result) -> str:
    """Return a table of the control loop in steps, in real time and through ROS 2."""
    entries = result["entries"]

    def row(name: str, cell: Callable[[dict[str, Any]], str], first: str = "") -> tuple[str, ...]:
        return (name, first, *(cell(entry) for entry in entries.values()))

    def real_time_difference(entry: dict[str, Any]) -> str:
        pair = entry.get("minus_in_steps")
        return difference(pair) if pair else ""

    rows = [
        row("score", lambda e: interval(e["score"]), interval(result["in_steps"]["score"])),
        row("difference from the score in steps", real_time_difference),
        row("success", lambda e: interval(e["success"])),
        row("ticks per second", lambda e: f"{e['rate_hz']:.2f}"),
        row("tick lateness, p50 / p95 / p99 ms", percentiles("late_ms")),
        row("prediction latency, p50 / p95 / p99 ms", percentiles("latency_ms")),
        row(
            "skipped / without a plan / clamped ticks",
            lambda e: f"{e['overruns']} / {e['ticks_without_plan']} / {e['clamped_ticks']}",
        ),
    ]
    header = (f"{result['episodes']} episodes", "Push-T in steps", *entries)
    return markdown(header, rows, left=1)


def record_train_run(result: Result) -> str:
    """Return a table of the recordings, scores and timing of simulated robots."""
    entries = result["entries"]
    rows: list[tuple[str, ...]] = [
        (name, *(cell(entry) for entry in entries.values()))
        for name, cell in RECORD_TRAIN_RUN_ROWS.items()
    ]
    updates = f"{result['updates']:,} updates"
    return markdown((updates, *entries), rows, left=1)


def interventions(result: Result) -> str:
    """Return a table of the policies before and after corrections, or fresh demonstrations."""
    names, entries = result["names"], result["entries"]
    first = entries[0]["name"]
    differences = {  # of the first policy minus each other one
        pair["b"]: pair
        for pair in result["paired"]
        if pair["a"] == first and pair["metric"] == "success"
    }

    def gain(name: str) -> str:
        if name == first:
            return ""
        return difference(differences[name], reverse=True)

    rows = []
    for name, entry in zip(names, entries, strict=True):
        minutes = result["person_minutes"][name]
        kind, _, count = name.partition("-")
        label = "first policy" if name == "first" else f"{count} {kind}"
        rows.append((
            label, f"{sum(minutes) / len(minutes):.1f}" if minutes else "0",
            *(interval(entry[metric]) for metric in METRICS), gain(entry["name"]),
        ))  # fmt: skip
    header = ("trained on", "minutes of the person", *METRICS, "gain in success")
    return markdown(header, rows, left=1)


def streaming(result: Result) -> str:
    """Return tables of planning at every tick: scores and jerk, success, differences in success."""
    conditions = {STREAMING_CONDITIONS[c["condition"]]: c for c in result["conditions"]}
    undisturbed = conditions["undisturbed"]["entries"]
    labels = {entry["name"]: _streaming_label(entry["name"]) for entry in undisturbed}
    quality = [
        (
            labels[entry["name"]],
            *(interval(entry[key]) for key in (*METRICS, "jerk")),
            f"{entry['batch_ms_per_tick']:.0f} ms",
        )
        for entry in undisturbed
    ]
    success: dict[str, list[str]] = {name: [] for name in labels}
    gaps: dict[str, list[str]] = {name: [] for name in labels if name != STREAMING_REFERENCE}
    for condition in conditions.values():
        for entry in condition["entries"]:
            success[entry["name"]].append(interval(entry["success"]))
        pairs = {
            pair["b"] if pair["a"] == STREAMING_REFERENCE else pair["a"]: pair
            for pair in condition["paired"]
            if pair["metric"] == "success" and STREAMING_REFERENCE in (pair["a"], pair["b"])
        }
        for name, cells in gaps.items():
            cells.append(difference(pairs[name], reverse=pairs[name]["a"] != STREAMING_REFERENCE))
    tables = (
        (("undisturbed", *METRICS, "jerk, px", "computation per tick of 25 episodes"), quality),
        (("success", *conditions), [(labels[name], *row) for name, row in success.items()]),
        (
            (f"success of “{labels[STREAMING_REFERENCE]}” minus this one", *conditions),
            [(labels[name], *row) for name, row in gaps.items()],
        ),
    )
    return "\n".join(markdown(header, rows, left=1) for header, rows in tables)


def _streaming_label(name: str) -> str:
    run, _, method = name.partition(", ")
    return f"{entry_label(run)}, {STREAMING_METHODS[method]}"


def serving(result: Result) -> str:
    """Return tables of a server under load, and of a robot with and without a server."""
    latency, robot = result["latency_ms"], result["robot"]
    load = (
        f"{result['clients']}", f"{result['minutes']:g}", f"{result['requests']:,}",
        f"{result['lost']}", f"{result['errors']}",
        f"{latency['p50']:.0f} / {latency['p95']:.0f} / {latency['p99']:.0f}",
    )  # fmt: skip
    header = ("clients", "minutes", "requests", "lost", "errors", "latency, p50 / p95 / p99 ms")
    rows = [
        (label, interval(robot[key]["score"]), interval(robot[key]["success"]), gap)
        for label, key, gap in (
            ("on the server", "served", ""),
            ("in the robot's process", "local", difference(robot["difference"])),
        )
    ]
    policy = markdown(("policy", *METRICS, "first policy minus this one"), rows, left=1)
    return f"{markdown(header, [load], left=0)}\n{policy}"
