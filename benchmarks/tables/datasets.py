"""Tables of data sets: errors on held-out episodes, and the speed of reading."""

from __future__ import annotations

from benchmarks.tables.cells import Result, difference, interval
from ebt_policy.evaluation.tables import markdown

HELD_OUT_LABELS: dict[str, str] = {
    "ebt (steps 2, candidates 8)": "energy, lowest energy of 8",
    "ebt (steps 2, candidates 1)": "energy, one sample",
    "flow_matching (steps 2, candidates 8, select medoid)": "flow matching, medoid of 8",
    "flow_matching (steps 2, candidates 1)": "flow matching, one sample",
    "diffusion (ddim, steps 10, candidates 1)": "DDIM-10, one sample",
    "bc": "behaviour cloning",
}


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
            HELD_OUT_LABELS.get(str(entry["name"]), str(entry["name"])),
            f"{entry['train_steps']:,}",
            interval(entry["error"]), differences.get(entry["name"], ""),
        )
        for entry in result["entries"]
    ]  # fmt: skip
    rows.append(("repeating the last action", "", interval(hold), ""))
    header = ("policy", "updates", "error", "first policy minus this one")
    return markdown(header, rows, left=1)
