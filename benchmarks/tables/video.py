"""The table of video models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tables.cells import difference, interval
from ebt_policy.evaluation.tables import format_count, markdown
from ebt_policy.video.evaluate import SIGNALS

NAMES = {
    "ebt": "energy, System 1",
    "ebt_s2": "energy, System 2",
    "refiner": "refiner, no energy",
    "transformer_pp": "Transformer++",
}


def video(result: Mapping[str, Any]) -> str:
    """Return a table of errors, and their differences from Transformer++ of the same size."""
    against = {
        parse_entry(pair["a"]): difference(pair)
        for pair in result["paired"]
        if parse_entry(pair["b"]) == ("transformer_pp", parse_entry(pair["a"])[1], "")
    }
    rows = []
    for entry in result["entries"]:
        model, size, steps = parse_entry(entry["name"])
        hard = entry["hard"]
        rows.append(
            (
                NAMES[model],
                format_count(entry["params"]),
                steps,
                interval(entry["error"]),
                against.get((model, size, steps), ""),
                *(f"{hard[name]['mean']:.2f}" if name in hard else "" for name in SIGNALS),
            )
        )
    repeating = interval(result["entries"][0]["repeating"])
    rows.append(
        ("repeating the last frame", "", "", repeating, *("" for _ in range(1 + len(SIGNALS))))
    )
    header = (
        "model", "parameters", "steps", "error of the next frame", "difference from Transformer++",
        *(f"AUROC of {name} for hard frames" for name in SIGNALS),
    )  # fmt: skip
    return markdown(header, rows, left=1)


def parse_entry(name: str) -> tuple[str, str, str]:
    """Return model, size and steps from an entry's name; steps is "" without descent."""
    run, _, inference = name.partition("@")
    model, _, size = run.partition("-seed")[0].partition("-")
    return model, size, inference.removeprefix("steps=")
