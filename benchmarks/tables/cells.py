"""Cells of tables: estimates with intervals, and labels for names in stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebt_policy.evaluation.tables import format_interval

Result = Mapping[str, Any]  # a stored result, or an entry of it

# Stored results keep the names of the version that measured them -> labels in tables and figures.
LABELS = {
    "guesses through one block": "candidates through one block",
    "frozen prefix, told of it": "frozen prefix, conditioned on it",
    "classes left out": "excluded classes",
    "surprise": "plan inconsistency",
    "select drop": "select energy_decrease",
    ", level ": ", scoring_level ",
    "densest of": "density vote of",
}


def label_of(name: str) -> str:
    """Return the label of a name in a stored result; most names are their own label."""
    for stored, label in LABELS.items():
        name = name.replace(stored, label)
    return name


def interval(value: Result) -> str:
    """Return ``0.850 [0.800, 0.900]`` for ``{"mean": ..., "ci95": ...}``."""
    return format_interval(value["mean"], value["ci95"])


def difference(pair: Result, reverse: bool = False) -> str:
    """Return a paired difference a - b (with ``reverse``, b - a) with its interval and signs."""
    value, (low, high) = pair["diff"], pair["ci95"]
    if reverse:
        value, low, high = -value, -high, -low
    return format_interval(value, (low, high), signed=True)
