"""Tables of the replication of EBT-Policy, for the entries of its study."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from benchmarks.studies.replication import STUDIES
from benchmarks.tables.replication import energies, rivals, steps
from ebt_policy.policies.entries import PolicyEntry
from ebt_policy.policies.metrics import METRICS

PARTS = STUDIES["ebt_policy"].parts


def estimate(value: float) -> dict[str, Any]:
    return {"mean": value, "ci95": [value, value]}


def names_of(part: str) -> list[str]:
    return [PolicyEntry.name_of(text, is_pattern=False) for text in PARTS[part].entries]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    names = names_of("steps")
    means = {name: k / 100 for k, name in enumerate(names)}
    return {
        "entries": [
            {"name": name, **dict.fromkeys(METRICS, estimate(mean))} for name, mean in means.items()
        ],
        "paired": [
            {"a": a, "b": b, "metric": m, "diff": means[a] - means[b], "ci95": [0.0, 0.0]}
            for a, b in combinations(names, 2)
            for m in METRICS
        ],
    }


def test_each_cell_is_the_entry_of_its_run_steps_and_candidates(result):
    score, success = steps(result).split("\n\n")
    assert "descent steps, score" in score and "descent steps, success" in success
    # Eight candidates come before one in the study, and equal time before equal updates.
    cells = [line.split(" | ") for line in score.splitlines() if line.startswith("| 8 ")]
    (row,) = cells
    assert [cell[:5] for cell in row[1:]] == ["0.090", "0.030", "0.210", "0.150"]
    assert "| up to 20 |" in score


def test_the_claimed_differences_are_listed_with_the_rivals(result):
    table, differences = rivals(result).split("\n\n")
    assert table.count("\n") == 2 + 4 and "DDPM-100, one sample" in table
    assert "EBT-Policy" not in table
    claim = (
        "“EBT-Policy, equal updates, 2 steps, one sample” minus “DDPM-100, one sample” | "
        "-0.090 [+0.000, +0.000]"
    )
    assert claim in differences


def test_energies_are_listed_before_each_step():
    values = [estimate(float(k)) for k in range(21)]
    entries = [
        {"name": name, "energy": values[:20], "grad_norm": values[:20], "error": values}
        for name in names_of("energy")
    ]
    tables = energies({"entries": entries}).split("\n\n")
    assert len(tables) == 3 and "step of default objective, 20 steps" in tables[2]
    assert "| 19 | 19 | 19 | 19 |" in tables[0]
