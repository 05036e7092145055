"""Intervals: formulas, coverage, independence of the order, and errors for invalid input."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebt_policy.evaluation.statistics import (
    aggregates,
    mean_ci,
    paired_difference,
    paired_differences,
    percentiles,
    success_rate,
    wilson,
)

FINITE = st.floats(-1e6, 1e6, allow_nan=False)
VALUES = st.lists(FINITE, min_size=1, max_size=12)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_equals_its_formula(case: tuple[int, int]) -> None:
    k, n = case
    z, p = 1.959963984540054, k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    result = wilson(k, n)
    assert result["mean"] == p
    assert result["ci95"] == pytest.approx([centre - half, centre + half], abs=1e-9)
    assert 0.0 <= result["ci95"][0] <= p <= result["ci95"][1] <= 1.0


def test_success_rate_interval_is_wilson_for_one_run_and_bootstrap_for_several() -> None:
    assert success_rate([0, 0]) == success_rate([[False, False]]) == wilson(0, 2)
    several = [[1, 0, 1, 1], [0, 0, 1, 1]]
    assert success_rate(several) == mean_ci(several)
    with pytest.raises(ValueError, match="must be 0 or 1"):
        success_rate([0.5, 1])


@settings(max_examples=20, deadline=None)
@given(VALUES, st.randoms(use_true_random=False))
def test_mean_ci_ignores_order_and_brackets_the_values(values, random) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    result = mean_ci(values)
    assert mean_ci(shuffled) == result
    lo, hi = result["ci95"]
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= lo <= hi <= max(values) + slack
    assert result["mean"] == pytest.approx(np.mean(values), abs=slack)


def test_mean_ci_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    values = np.random.default_rng(3).normal(size=40)
    before = np.random.get_state(legacy=True)[1].copy()  # type: ignore
    assert mean_ci(values) == mean_ci(values)
    assert mean_ci(values, seed=1)["ci95"] != mean_ci(values, seed=2)["ci95"]
    assert (np.random.get_state(legacy=True)[1] == before).all()  # type: ignore


def test_mean_ci_has_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    trials = 200
    covered = 0
    for trial in range(trials):
        lo, hi = mean_ci(rng.normal(2.0, 3.0, size=40), seed=trial)["ci95"]
        covered += lo <= 2.0 <= hi
    # Binomial noise is 1.5 points; the percentile bootstrap lacks 1 to 2 points at n = 40.
    assert 0.90 <= covered / trials <= 0.985


def test_mean_ci_agrees_with_the_normal_interval_of_a_large_sample() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, size=2000)
    lo, hi = mean_ci(values)["ci95"]
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert [lo, hi] == pytest.approx([values.mean() - half, values.mean() + half], abs=2e-3)


def test_interval_of_equal_values_has_zero_width() -> None:
    assert mean_ci([0.3]) == {"mean": 0.3, "ci95": [0.3, 0.3]}
    assert mean_ci([0.1] * 7) == {"mean": 0.1, "ci95": [0.1, 0.1]}


@settings(max_examples=20, deadline=None)
@given(VALUES)
def test_paired_difference_of_identical_values_is_exactly_zero(values) -> None:
    assert paired_difference(values, values) == {"diff": 0.0, "ci95": [0.0, 0.0]}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=10), st.randoms())
def test_paired_difference_does_not_depend_on_the_order_of_episodes(pairs, random) -> None:
    a, b = zip(*random.sample(pairs, len(pairs)), strict=True)
    assert paired_difference(a, b) == paired_difference(*zip(*pairs, strict=True))


def test_paired_interval_is_narrower_than_separate_intervals() -> None:
    luck = np.random.default_rng(0).normal(0.0, 1.0, size=30)
    a, b = luck + 0.1 + np.linspace(-0.05, 0.05, 30), luck
    result = paired_difference(a, b)
    assert result["diff"] == pytest.approx(0.1) and result["ci95"][0] > 0
    assert mean_ci(a)["ci95"][0] < mean_ci(b)["ci95"][1]


def test_percentiles_interpolate() -> None:
    assert percentiles(np.arange(101)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([4.0]) == {"p50": 4.0, "p95": 4.0, "p99": 4.0}


@pytest.mark.parametrize("function", [mean_ci, percentiles, lambda v: paired_difference(v, v)])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "empty"),
        ([1.0, float("nan")], r"\[1\] is nan"),
        ([float("inf")], "finite"),
        ([[[1.0]]], "episodes|one-dimensional"),
        (3.0, "episodes|one-dimensional"),
    ],
)
def test_invalid_values_are_refused(function, bad, message) -> None:
    with pytest.raises(ValueError, match=message):
        function(bad)


def test_percentiles_of_a_table_are_refused() -> None:
    with pytest.raises(ValueError, match="one-dimensional"):
        percentiles([[1.0, 2.0]])


@pytest.mark.parametrize(
    ("k", "n", "message"),
    [
        (0, 0, "n is 0: evaluate at least one episode"),
        (1, -2, "n is -2: evaluate at least one episode"),
        (3, 2, "between 0 and n; got 3 of 2"),
        (-1, 4, "between 0 and n; got -1 of 4"),
        (0.5, 2, "whole numbers; got 0.5 of 2"),
        (1, 2.5, "whole numbers; got 1 of 2.5"),
    ],
)
def test_invalid_counts_are_refused(k, n, message) -> None:
    with pytest.raises(ValueError, match=message):
        wilson(k, n)


def test_integer_counts_of_any_type_are_accepted() -> None:
    assert wilson(np.int64(2), np.int64(4)) == wilson(2, 4)  # type: ignore[arg-type]
    assert wilson(2.0, 4.0) == wilson(2, 4)  # type: ignore[arg-type]


def test_all_pairs_equal_single_pairs() -> None:
    rng = np.random.default_rng(0)
    values = {"a": rng.random((3, 40)), "b": rng.random((2, 40)), "c": rng.random(40)}
    differences = paired_differences({**values, "d": values["c"] + 1})
    assert list(differences) == [*((a, b) for a, b in combinations("abcd", 2))]
    assert differences["a", "b"]["diff"] == paired_difference(values["a"], values["b"])["diff"]
    single = paired_difference(values["a"], values["c"])
    # The resamples differ, so the intervals are only close.
    np.testing.assert_allclose(differences["a", "c"]["ci95"], single["ci95"], atol=5e-3)
    assert differences["c", "d"] == paired_difference(values["c"], values["c"] + 1)


def test_pairs_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many episodes"):
        paired_difference([1.0], [1.0, 2.0])


def test_several_runs_widen_the_interval_by_their_spread() -> None:
    rng = np.random.default_rng(0)
    episodes = rng.normal(size=100)
    alike = np.stack([episodes] * 3)
    assert mean_ci(alike)["ci95"] == pytest.approx(mean_ci(episodes)["ci95"], abs=0.02)
    different = alike + np.array([[-1.0], [0.0], [1.0]])
    lo, hi = mean_ci(different)["ci95"]
    assert mean_ci(different)["mean"] == pytest.approx(episodes.mean())
    assert hi - lo > 1.5 > np.ptp(mean_ci(alike)["ci95"])


def test_paired_runs_share_episode_resampling() -> None:
    rng = np.random.default_rng(0)
    luck = 10 * rng.normal(size=80)
    a, b = (luck + rng.normal(size=(runs, 80)) * 0.1 for runs in (3, 2))
    result = paired_difference(a + 0.5, b)
    lo, hi = result["ci95"]
    assert 0.4 < lo < 0.5 < hi < 0.6


def of_three_runs(rng: np.random.Generator) -> np.ndarray:
    """Return 40 episodes of three training runs that differ much."""
    return rng.normal(size=(3, 40)) * 0.1 + np.array([[-1.0], [0.0], [1.0]])


def test_runs_are_paired_if_both_are_the_same_runs() -> None:
    a = of_three_runs(np.random.default_rng(0))
    lo, hi = paired_difference(a + 0.1, a)["ci95"]
    assert lo < -0.5 and hi > 0.5
    together = paired_difference(a + 0.1, a, same_runs=True)
    assert [together["diff"], *together["ci95"]] == pytest.approx([0.1] * 3)
    values, runs = {"a": a, "b": a + 0.1, "c": a}, {"a": 0, "b": 0, "c": 1}
    widths = {pair: np.ptp(d["ci95"]) for pair, d in paired_differences(values, runs).items()}
    assert widths["a", "b"] == pytest.approx(0) and min(widths["a", "c"], widths["b", "c"]) > 1


def test_same_runs_are_paired_over_tasks() -> None:
    rng = np.random.default_rng(0)
    a = {task: of_three_runs(rng) for task in ("lift", "can")}
    b = {task: values - 0.1 for task, values in a.items()}
    for runs, is_joint in (({"a": "x", "b": "x"}, True), ({"a": "x", "b": "y"}, False)):
        for pair in aggregates({"a": a, "b": b}, runs)["paired"]:
            assert pair["diff"] == pytest.approx(0.1)
            assert (np.ptp(pair["ci95"]) < 1e-9) == is_joint


# -- aggregates over tasks ------------------------------------------------------------------------


def one_episode(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores (runs, tasks) as one episode per task, so only runs are resampled."""
    return {f"task {k}": scores[:, k : k + 1] for k in range(scores.shape[1])}


def test_aggregates_agree_with_rliable() -> None:
    # Values of rliable 1.2.0, with 200,000 resamples; 20,000 for comparisons of a and b.
    rng = np.random.default_rng(0)
    a, b = (np.round(rng.beta(*p, size=s), 3) for p, s in (((4, 2), (3, 10)), ((3, 3), (5, 10))))
    result = aggregates({"a": one_episode(a), "b": one_episode(b)})
    estimates = [
        *(result["entries"][name][metric] for name in "ab" for metric in ("mean", "iqm")),
        *({"mean": pair["diff"], "ci95": pair["ci95"]} for pair in result["paired"]),
        *result["improvement"],
    ]
    rliable = [
        (0.657667, 0.601867, 0.714500),
        (0.665875, 0.594813, 0.742875),
        (0.508320, 0.457520, 0.559300),
        (0.496885, 0.441231, 0.557538),
        (0.149347, 0.073613, 0.223314),
        (0.168990, 0.074725, 0.262501),
        (0.733333, 0.62, 0.84),
    ]
    for estimate, (mean, lo, hi) in zip(estimates, rliable, strict=True):
        assert estimate["mean"] == pytest.approx(mean, abs=1e-6)
        assert estimate["ci95"] == pytest.approx([lo, hi], abs=0.007)  # the last: 1 / 150 steps


def some_tasks(runs: int = 3, shift: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    chances = {"lift": 0.9, "can": 0.6, "square": 0.3, "door": 0.5}
    return {
        task: (rng.uniform(size=(runs, 30)) < chance - shift).astype(float)
        for task, chance in chances.items()
    }


def test_aggregate_of_one_task_and_run_is_the_plain_mean() -> None:
    values = some_tasks(runs=1)["can"]
    result = aggregates({"a": {"can": values}})
    plain = mean_ci(values)
    for metric in ("mean", "iqm"):
        aggregate = result["entries"]["a"][metric]
        assert aggregate["mean"] == pytest.approx(plain["mean"])
        assert aggregate["ci95"] == pytest.approx(plain["ci95"], abs=0.04)  # one episode is 1 / 30
    assert result["paired"] == result["improvement"] == []


def test_interquartile_mean_excludes_a_quarter_at_each_end() -> None:
    scores = np.array([[0.0, 0.2, 0.4, 1.0]])
    entry = aggregates({"a": one_episode(scores)})["entries"]["a"]
    assert entry["iqm"] == {"mean": pytest.approx(0.3), "ci95": pytest.approx([0.3, 0.3])}
    assert entry["mean"] == {"mean": pytest.approx(0.4), "ci95": pytest.approx([0.4, 0.4])}


def test_aggregates_do_not_depend_on_order() -> None:
    values = {"a": some_tasks(), "b": some_tasks(2, 0.2, 1), "c": some_tasks(1, 0.1, 2)}
    result = aggregates(values)
    turned = {n: dict(reversed(values[n].items())) for n in ("a", "c", "b")}
    again = aggregates(turned)
    assert again["entries"] == result["entries"]
    for key in ("paired", "improvement"):
        assert sorted(again[key], key=str) == sorted(result[key], key=str)
    assert aggregates({"c": values["c"]})["entries"]["c"] == result["entries"]["c"]


def test_policies_share_episode_resampling_on_each_task() -> None:
    rng = np.random.default_rng(0)
    luck = {task: rng.normal(size=(1, 40)) for task in ("lift", "can")}
    a = {task: x + 0.1 for task, x in luck.items()}
    result = aggregates({"a": a, "b": luck})
    for metric in ("mean", "iqm"):
        (pair,) = (pair for pair in result["paired"] if pair["metric"] == metric)
        assert [pair["diff"], *pair["ci95"]] == pytest.approx([0.1] * 3)
    assert result["improvement"] == [{"a": "a", "b": "b", "mean": 1.0, "ci95": [1.0, 1.0]}]
    same = aggregates({"a": luck, "b": luck})
    assert all(pair["diff"] == 0 for pair in same["paired"])
    assert same["improvement"][0]["mean"] == 0.5


def test_training_runs_widen_the_aggregate_by_their_spread() -> None:
    episodes = np.random.default_rng(0).normal(size=(1, 100))
    alike, different = (
        {task: episodes + spread * np.array([[-1.0], [0.0], [1.0]]) for task in ("lift", "can")}
        for spread in (0, 1)
    )
    narrow, wide = (
        aggregates({"a": x})["entries"]["a"]["mean"]["ci95"] for x in (alike, different)
    )
    assert np.ptp(wide) > 1 > 2 * np.ptp(narrow)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing to aggregate"),
        ({"a": {}}, "nothing to aggregate"),
        ({"a": {"lift": [1.0]}, "b": {"can": [1.0]}}, "'a' has no values of the task 'can'"),
        ({"a": {"lift": [1.0]}, "b": {"lift": [1.0, 0.0]}}, "same episodes of 'lift'"),
        ({"a": {"lift": [[1.0]], "can": [[1.0], [0.0]]}}, "the same number of training runs"),
        ({"a": {"lift": [float("nan")]}}, "finite"),
    ],
)
def test_invalid_aggregates_are_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        aggregates(values)
