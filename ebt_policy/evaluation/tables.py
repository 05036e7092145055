"""Tables of results in Markdown, numbers for a person, and what a report shows (`ReportSpec`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

MISSING = "n/a"


class ReportSpec(NamedTuple):
    """What ``table.md`` and the report show of a comparison.

    Attributes:
        header, row: of the table of results; the first cell is an entry's name.
        metrics: those with intervals, to be drawn; empty if nothing was measured.
        facts: how an entry was trained and evaluated: (term, text).
        note: of a comparison, one sentence on its intervals.
        paired_over: what the paired differences are over; "" if there are none.
    """

    header: Sequence[str]
    row: Callable[[Mapping[str, Any]], Sequence[str]]
    metrics: Sequence[str]
    facts: Callable[[Mapping[str, Any]], list[tuple[str, str]]]
    note: Callable[[Mapping[str, Any]], str]
    paired_over: str


def markdown_table(comparison: Mapping[str, Any], spec: ReportSpec) -> str:
    """Render a comparison as Markdown: a row an entry, then the paired differences."""
    rows = [spec.row(entry) for entry in comparison["entries"]]
    text = markdown(spec.header, rows, left=1)
    text += f"\n{spec.note(comparison)}\n"
    if comparison["paired"]:
        text += f"\nPaired differences, a - b, {spec.paired_over}:\n\n"
        text += paired_table(comparison["paired"])
    unpaired = unpaired_names(comparison)
    if unpaired:
        text += "\nNot paired, since they were not measured on the same: "
        text += "; ".join(f"{_cell(a)} and {_cell(b)}" for a, b in unpaired) + ".\n"
    return text


def paired_table(paired: Iterable[Mapping[str, Any]]) -> str:
    """Markdown of differences ``{a, b, metric, diff, ci95}``."""
    rows = [
        (p["a"], p["b"], p["metric"], format_interval(p["diff"], p["ci95"], signed=True))
        for p in paired
    ]
    return markdown(("a", "b", "metric", "difference"), rows, left=3)


def unpaired_names(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of entry names that `comparison` could not pair."""
    done = {(p["a"], p["b"]) for p in comparison["paired"]}
    names = [entry["name"] for entry in comparison["entries"]]
    return [pair for pair in combinations(names, 2) if pair not in done]


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]], left: int) -> str:
    """A Markdown table whose first `left` columns are aligned to the left."""
    head = [_cell(h) for h in header]
    rule = [":--" if i < left else "--:" for i in range(len(head))]
    lines = [head, rule, *([_cell(c) for c in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def format_interval(mean: float, ci: Sequence[float], signed: bool = False, digits: int = 3) -> str:
    """`0.943 [0.910, 0.971]`, or with signs, for a difference."""
    # Rounding first, then adding zero, keeps "-0.000" out of the tables.
    spec = f"{'+' if signed else ''}.{digits}f"
    mid, lo, hi = (f"{round(float(v), digits) + 0.0:{spec}}" for v in (mean, *ci))
    return f"{mid} [{lo}, {hi}]"


def format_estimate(estimate: Mapping[str, Any], digits: int = 3) -> str:
    """`format_interval` of ``{mean, ci95}``."""
    return format_interval(estimate["mean"], estimate["ci95"], digits=digits)


def or_missing(value: Any) -> str:
    """Return the text of a value, `n/a` for None."""
    return MISSING if value is None else str(value)


def format_count(count: int | None) -> str:
    """Parameters for a person: 340000 -> `0.34M`."""
    if count is None:
        return MISSING
    rounded = float(f"{count:.3g}")
    for least, size, unit in ((1e9, 1e9, "B"), (1e5, 1e6, "M"), (1e3, 1e3, "k")):
        if rounded >= least:
            return f"{rounded / size:.3g}{unit}"
    return str(count)


def format_number(value: float | None) -> str:
    """A latency for a person: three digits that matter, `n/a` when None."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def format_minutes(seconds: float | None) -> str:
    """Seconds as minutes, `n/a` when None."""
    return MISSING if seconds is None else f"{seconds / 60:.1f}"
