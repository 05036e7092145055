"""Evaluation results of policies: entries, comparisons, files and tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from policy_results import INFO, make_entry, make_episodes

from ebt_policy.evaluation import tables
from ebt_policy.evaluation.tables import format_interval, markdown_table
from ebt_policy.policies.metrics import POLICY_REPORT, compare, entry_summary, write_results

KEYS = [
    *("name", *INFO),
    *("episodes", "score", "success", "latency_ms", "steps_used", "command"),
    *("date", "version", "commit"),
]


def test_entry_has_exactly_the_documented_keys() -> None:
    entry, _ = make_entry("energy", [1.0, 0.5])
    assert list(entry) == KEYS
    assert entry["episodes"] == 2 and entry["score"]["mean"] == 0.75
    assert entry["success"]["mean"] == 0.5
    for metric in ("score", "success"):
        assert set(entry[metric]) == {"mean", "ci95"} and len(entry[metric]["ci95"]) == 2
    assert entry["latency_ms"] == {"p50": 10.0, "p95": 10.0, "p99": 10.0}
    assert entry["steps_used"] == {"mean": 4.0}


def test_entry_contains_the_package_version() -> None:
    assert entry_summary("e", INFO, make_episodes([1.0]), "c")["version"]


def test_missing_latency_is_shown_as_not_available() -> None:
    entry = entry_summary("e", INFO, make_episodes([1.0], latency=None), "c")
    assert entry["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert entry["steps_used"] == {"mean": None}
    assert "n/a / n/a / n/a" in markdown_table({"entries": [entry], "paired": []}, POLICY_REPORT)


@pytest.mark.parametrize(
    ("name", "info", "episodes", "message"),
    [
        ("", INFO, make_episodes([1.0]), "name"),
        ("e", {"task": "push_t"}, make_episodes([1.0]), "missing: \\['model'"),
        ("e", INFO | {"colour": 1}, make_episodes([1.0]), "unknown: \\['colour'\\]"),
        ("e", INFO, [], "no episodes"),
        ("e", INFO, make_episodes([1.0, 0.2], seeds=[3, 3]), "several episodes of seed 3"),
        ("e", INFO, make_episodes([float("nan")]), "finite"),
        ("e", INFO, make_episodes([1.0], latency=float("inf")), "finite"),
        ("e", INFO, [{"seed": 0}], "'score'|'chunks'"),
    ],
)
def test_invalid_entries_are_refused(name, info, episodes, message) -> None:
    with pytest.raises(ValueError, match=message):
        entry_summary(name, info, episodes, "c")


def test_paired_difference_equals_a_hand_computed_case() -> None:
    # a - b is +1, 0 and -1 (the episodes of a are in another order), so the mean is 0. One of the
    # 27 resamples (3.7 %) lies at each end, so the 95 % interval includes both ends.
    a = make_entry("a", [0.0, 1.0, 0.5], seeds=[12, 10, 11])
    b = make_entry("b", [0.0, 0.5, 1.0], seeds=[10, 11, 12])
    result = compare([a, b])
    assert set(result) == {"entries", "paired"}
    assert [e["name"] for e in result["entries"]] == ["a", "b"]
    score, success = result["paired"]
    assert list(score) == ["a", "b", "metric", "diff", "ci95"]
    assert score == {"a": "a", "b": "b", "metric": "score", "diff": 0.0, "ci95": [-1.0, 1.0]}
    assert success == {"a": "a", "b": "b", "metric": "success", "diff": 0.0, "ci95": [-1.0, 1.0]}


def test_comparable_entries_are_paired_once() -> None:
    scores = [0.2, 0.4]
    three = [make_entry(name, scores) for name in "abc"]
    other_seeds = make_entry("d", scores, seeds=[7, 8])
    other_task = make_entry("e", scores, task="lift")
    result = compare([*three, other_seeds, other_task])
    pairs = {(p["a"], p["b"]) for p in result["paired"]}
    assert pairs == {("a", "b"), ("a", "c"), ("b", "c")} and len(result["paired"]) == 6
    assert "Not paired" in markdown_table(result, POLICY_REPORT) and "d and e" in markdown_table(
        result, POLICY_REPORT
    )


def test_entries_of_the_same_runs_are_paired_by_run() -> None:
    rows = [
        (name, [(run, seed, run / 2 + shift) for run in range(3) for seed in range(4)])
        for name, shift in (("one sample", 0.0), ("best of 8", 0.1))
    ]
    entries = []
    for name, values in rows:
        summary, episodes = make_entry(name, [score for *_, score in values])
        episodes = [
            {**episode, "train_seed": run, "seed": seed}
            for episode, (run, seed, _) in zip(episodes, values, strict=True)
        ]
        entries.append((summary, episodes))
    wide, narrow = (compare(entries, runs)["paired"][0]["ci95"] for runs in (None, ["x", "x"]))
    assert narrow == pytest.approx([-0.1, -0.1]) and wide[0] < -0.5 < 0.5 < wide[1]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((-0.0148, -0.0353, -0.00024), "-0.015 [-0.035, -0.0002]"),
        ((0.0, 0.0, 0.00004), "+0.000 [+0.000, +0.00004]"),
        ((0.1, -1e-9, 0.2), "+0.100 [+0.000, +0.200]"),
    ],
)
def test_signs_of_differences_are_shown(values, text) -> None:
    mean, *ci = values
    assert format_interval(mean, ci, signed=True) == text
    assert "0.000" in format_interval(-1e-9, [-1e-9, 0.00024])
    assert "-0.000" not in format_interval(-1e-9, [-1e-9, 0.00024])


def test_empty_or_duplicate_entries_are_refused(policy_entries) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])
    with pytest.raises(ValueError, match="'energy'"):
        compare([policy_entries[0], policy_entries[0]])


def test_written_results_are_read_back_unchanged(tmp_path, policy_entries) -> None:
    policy_entries[0][1][0]["score"] = np.float32(1.0)  # NumPy numbers are stored as plain numbers
    entries_with_states = [
        (s, [e | {"states": np.zeros((16, 5))} for e in episodes]) for s, episodes in policy_entries
    ]
    result = write_results(tmp_path / "run", entries_with_states)  # collected states are left out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"episodes.jsonl", "summary.json", "table.md"}  # and no temporary file
    assert json.loads((tmp_path / "run/summary.json").read_text("utf-8")) == result
    lines = [json.loads(s) for s in (tmp_path / "run/episodes.jsonl").read_text().splitlines()]
    assert [(s["entry"], s["seed"]) for s in lines] == [
        (name, seed) for name in ("energy", "diffusion") for seed in range(3)
    ]
    assert lines[0] == {"entry": "energy", **policy_entries[0][1][0]}
    assert (tmp_path / "run/table.md").read_text("utf-8") == markdown_table(result, POLICY_REPORT)


def test_failed_write_keeps_the_old_results(tmp_path, policy_entries, monkeypatch) -> None:
    write_results(tmp_path, policy_entries)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    policy_entries[0][1][0]["chunks"][0]["energy"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path, policy_entries)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(tmp_path, policy_entries[1:])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_incomplete_episodes_are_not_written(tmp_path, policy_entries) -> None:
    del policy_entries[1][1][2]["video"]
    with pytest.raises(ValueError, match="Episode 2 has no 'video'"):
        write_results(tmp_path / "run", policy_entries)
    assert not (tmp_path / "run").exists()


def test_table_rows_are_formatted(policy_entries) -> None:
    table = markdown_table(compare(policy_entries), POLICY_REPORT)
    row = next(line for line in table.splitlines() if line.startswith("| energy | 0.341M"))
    assert "0.767 [0.500, 1.000]" in row
    assert "10.0 / 10.0 / 10.0" in row and row.endswith("| 15.0 |")
    assert "| energy | diffusion | score | +0.033 [" in table
    assert "-0.000" not in table and "over 3 episodes" in table


def test_names_are_escaped_in_the_table() -> None:
    table = markdown_table(compare([make_entry("a|b\nc", [1.0])]), POLICY_REPORT)
    assert "| a\\|b c | 0.341M" in table and "over 1 episode per entry" in table


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (9_540, "9.54k"),
        (340_000, "0.34M"),
        (41_200_000, "41.2M"),
        (999_999_999, "1B"),
        (1_234_000_000, "1.23B"),
        (None, "n/a"),
    ],
)
def test_counts_are_formatted(count, text) -> None:
    assert tables.format_count(count) == text
