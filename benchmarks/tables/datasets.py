"""Tables of data sets: errors on held-out episodes, and the speed of reading."""

from __future__ import annotations

from benchmarks.tables.cells import Result, difference, interval
from benchmarks.tables.entry_labels import entry_label
from ebt_policy.evaluation.tables import markdown


def dataset_speed(result: Result) -> str:
    """Return a table of windows per second, relative to the fastest loader of LeRobot."""
    rates = result["windows_per_s"]
    best = max(rate for name, rate in rates.items() if name.startswith("LeRobot"))
    rows = [(name, f"{rate:,.0f}", f"{rate / best:.1f}x") for name, rate in rates.items()]
    return markdown(("frames", "windows per second", "relative to LeRobot's best"), rows, left=1)


def held_out(result: Result) -> str:
    """Return a table of errors on held-out episodes, with the first entry minus each other entry.

    The last row repeats the last action.
    """
    first, hold = result["entries"][0]["name"], result["entries"][0]["hold_error"]
    differences = {pair["b"]: difference(pair) for pair in result["paired"] if pair["a"] == first}
    rows = [
        (
            entry_label(entry["name"]),
            f"{entry['train_steps']:,}",
            interval(entry["error"]), differences.get(entry["name"], ""),
        )
        for entry in result["entries"]
    ]  # fmt: skip
    rows.append(("repeating the last action", "", interval(hold), ""))
    header = ("policy", "updates", "error", "first policy minus this one")
    return markdown(header, rows, left=1)
