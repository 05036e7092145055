"""What several tables share: cells with intervals, and entries of stored results by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebt_policy.evaluation.tables import format_interval


def interval(value: Mapping[str, Any]) -> str:
    """Return ``0.85 [0.80, 0.90]`` of ``{"mean": ..., "ci95": ...}``."""
    return format_interval(value["mean"], value["ci95"])


def difference(pair: Mapping[str, Any]) -> str:
    """Return a paired difference with its interval and sign."""
    return format_interval(pair["diff"], pair["ci95"], signed=True)
