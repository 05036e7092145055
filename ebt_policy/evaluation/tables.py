"""Markdown tables of results, formatting of numbers, and the content of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

MISSING = "n/a"


class ReportSpec(NamedTuple):
    """The content of ``table.md`` and the report.

    Attributes:
        header: header of the table of results.
        row: entry -> cells of its row; the first cell is its name.
        metrics: metrics with intervals, which the report draws; empty if there are none.
        facts: entry -> (term, text) rows on its training and evaluation.
        note: comparison -> note on its intervals.
        paired_over: how differences are paired, such as "clip by clip"; "" if there are none.
    """

    header: Sequence[str]
    row: Callable[[Mapping[str, Any]], Sequence[str]]
    metrics: Sequence[str]
    facts: Callable[[Mapping[str, Any]], list[tuple[str, str]]]
    note: Callable[[Mapping[str, Any]], str]
    paired_over: str


def markdown_table(comparison: Mapping[str, Any], spec: ReportSpec) -> str:
    """Return a comparison as Markdown: a table of entries, then the paired differences."""
    rows = [spec.row(entry) for entry in comparison["entries"]]
    text = markdown(spec.header, rows, left=1)
    text += f"\n{spec.note(comparison)}\n"
    if comparison["paired"]:
        text += f"\nPaired differences, a - b, {spec.paired_over}:\n\n"
        text += paired_table(comparison["paired"])
    unpaired = unpaired_names(comparison)
    if unpaired:
        text += "\nNot paired, because they were not evaluated on the same data: "
        text += "; ".join(f"{_cell(a)} and {_cell(b)}" for a, b in unpaired) + ".\n"
    return text


def paired_table(paired: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table of differences ``{a, b, metric, diff, ci95}``."""
    rows = [
        (p["a"], p["b"], p["metric"], format_interval(p["diff"], p["ci95"], signed=True))
        for p in paired
    ]
    return markdown(("a", "b", "metric", "difference"), rows, left=3)


def unpaired_names(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs of entry names without a paired difference."""
    done = {(p["a"], p["b"]) for p in comparison["paired"]}
    names = [entry["name"] for entry in comparison["entries"]]
    return [pair for pair in combinations(names, 2) if pair not in done]


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]], left: int) -> str:
    """Return a Markdown table with the first `left` columns aligned to the left."""
    head = [_cell(h) for h in header]
    rule = [":--" if i < left else "--:" for i in range(len(head))]
    lines = [head, rule, *([_cell(c) for c in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def format_interval(mean: float, ci: Sequence[float], signed: bool = False, digits: int = 3) -> str:
    """Return a text such as `0.943 [0.910, 0.971]`; with signs, for differences, if `signed`.

    A signed number that would be rounded to zero has up to two more digits, which show its sign.
    """
    mid, lo, hi = (_rounded(float(value), signed, digits) for value in (mean, *ci))
    return f"{mid} [{lo}, {hi}]"


def _rounded(value: float, signed: bool, digits: int) -> str:
    if signed:
        digits = next((n for n in range(digits, digits + 3) if round(value, n)), digits)
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"  # + 0.0: no "-0.000"


def format_estimate(estimate: Mapping[str, Any], digits: int = 3) -> str:
    """Return `format_interval` of ``{mean, ci95}``."""
    return format_interval(estimate["mean"], estimate["ci95"], digits=digits)


def or_missing(value: Any) -> str:
    """Return a value as text, or `n/a` for None."""
    return MISSING if value is None else str(value)


def format_count(count: int | None) -> str:
    """Return a rounded number of parameters: 340000 -> `0.34M`; `n/a` for None."""
    if count is None:
        return MISSING
    rounded = float(f"{count:.3g}")
    for least, size, unit in ((1e9, 1e9, "B"), (1e5, 1e6, "M"), (1e3, 1e3, "k")):
        if rounded >= least:
            return f"{rounded / size:.3g}{unit}"
    return str(count)


def format_number(value: float | None) -> str:
    """Return a value, such as a latency, with about three digits; `n/a` for None."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def format_minutes(seconds: float | None) -> str:
    """Return seconds in minutes as text; `n/a` for None."""
    return MISSING if seconds is None else f"{seconds / 60:.1f}"
