"""Markdown tables of the results of each card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables.cells import label_of
from ebt_policy.evaluation.tables import markdown

Cases = dict[str, dict[str, Any]]
COLUMNS = {
    "update_ms": "update, ms",
    "samples_per_second": "samples/s",
    "tokens_per_second": "tokens/s",
    "images_per_second": "images/s",
    "share_of_bf16_peak": "share of bf16 peak",
    "times_floor": "times the floor",
    "share_kernels": "share in kernels",
    "launches": "launches",
    "synchronisations": "synchronisations",
    "share_gathering_data": "share gathering data",
    "goal": "goal score",
    "seconds_to_goal": "seconds to the goal score",
    "best_score": "best score",
    "ms": "attention, ms",
    "memory_gib": "GiB",
}
RUNS = ("eager", "compiled", "graph")  # modes of a prediction


def cards(output: Path) -> str:
    """Return the tables of all cards in a folder of results."""
    sections = []
    for folder in sorted(folder for folder in output.glob("*") if folder.is_dir()):
        stored = json.loads((folder / "card.json").read_text())
        heading = f"{stored['card']}, PyTorch {stored['torch']}, version {stored['version']}"
        sections.append(f"{heading}:\n\n{tables(folder)}")
    return "\n".join(sections) or "No GPU has been measured with this benchmark yet.\n"


def tables(folder: Path) -> str:
    """Return a heading and a table for each section in a card's folder."""
    blocks = []
    for section, (title, table) in TABLES.items():
        file = folder / f"{section}.json"
        if not file.exists():
            continue
        stored = json.loads(file.read_text())
        blocks.append(f"### {title}\n\n{table(stored['cases'])}")
        if failed := stored["failed"]:
            lines = "\n".join(f"- {name}: {reason}" for name, reason in failed.items())
            blocks.append(f"Failed:\n\n{lines}\n")
    return "\n".join(blocks)


def card(cases: Cases) -> str:
    """Return a table of the measured rates."""
    rows = [
        (name, _number(value), unit.replace("_", " "))
        for name, case in cases.items()
        for unit, value in case.items()
    ]
    return markdown(("rate", "value", "unit"), rows, 1)


def latency(cases: Cases) -> str:
    """Return a table of median latencies by mode, their ratio to the floor, and speed-ups."""
    rows = []
    for name, case in cases.items():
        size, batch, *_ = name.split(", ")
        rival = cases.get(f"{size}, {batch}, DDPM-100")
        rows.append(
            (
                name,
                *(_number(case["runs"].get(run, {}).get("p50_ms")) for run in RUNS),
                _number(case["times_floor"]),
                "" if rival is None else f"{rival['best_ms'] / case['best_ms']:.1f}x",
            )
        )
    header = ("median, ms", *RUNS, "times the floor", "speed-up over DDPM-100")
    return markdown(header, rows, 1)


def speeds(cases: Cases) -> str:
    """Return a table with a row for each case, and the columns of `COLUMNS` that a case has."""
    columns = {key: name for key, name in COLUMNS.items() if any(key in c for c in cases.values())}
    rows = [
        (label_of(name), *(_number(case.get(key)) for key in columns))
        for name, case in cases.items()
    ]
    return markdown(("case", *columns.values()), rows, 1)


TABLES: dict[str, tuple[str, Callable[[Cases], str]]] = {
    "card": ("Rates of the card", card),
    "latency": ("Latency of a chunk", latency),
    "training": ("Training policies", speeds),
    "push_t": ("Push-T from scratch", speeds),
    "text": ("Language models", speeds),
    "images": ("Cameras and images", speeds),
}


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
