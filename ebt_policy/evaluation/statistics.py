"""Means, proportions and differences, each with an interval that says how far to trust it.

Every interval is a plain `[lo, hi]` list of floats, ready for JSON. The bootstrap resamples the
*sorted* values with its own seeded generator, so that a result depends neither on the order of the
episodes nor on any global random state.

Shapes: n episodes, s training runs that played the same ones, K tasks, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, trim_mean

RESAMPLES = 10_000
_BLOCK = 4_000_000  # indices drawn at once: bounds the memory of one bootstrap to about 64 MB


def _table(values: ArrayLike, name: str = "values") -> np.ndarray:
    """Values (n,) or (s, n) as (s, n), checked."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim not in (1, 2):
        raise ValueError(f"{name} must be (episodes,) or (runs, episodes); got {x.shape}.")
    if x.size == 0:
        raise ValueError(f"{name} is empty: evaluate at least one episode first.")
    if not np.isfinite(x).all():
        index = np.argwhere(~np.isfinite(x))[0].tolist()
        raise ValueError(
            f"{name}{index} is {x[tuple(index)]}: every value must be a finite number."
        )
    return np.atleast_2d(x)


def resampled_means(tables: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Means of `RESAMPLES` resamples of each table (s_i, n), (RESAMPLES,) each.

    Episodes are drawn with replacement, the same ones for all tables; runs are drawn, too, for each
    table by itself.
    """
    rng = np.random.default_rng(seed)
    n = tables[0].shape[1]
    means: list[list[np.ndarray]] = [[] for _ in tables]
    block = max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        episodes = rng.multinomial(n, np.full(n, 1 / n), size=rows)
        for x, blocks in zip(tables, means, strict=True):
            runs = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=rows)
            blocks.append(((runs @ x) * episodes).sum(1) / x.size)
    return [np.concatenate(blocks) for blocks in means]


def mean_ci(values: ArrayLike, *, seed: int = 0) -> dict[str, Any]:
    """Mean of `values`, (n,) episodes or (s, n) of s training runs, with a bootstrap interval.

    Returns `{"mean": float, "ci95": [lo, hi]}`, in the units of the values. Percentile bootstrap
    with 10,000 resamples: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993,
    chapter 13. Of several runs that played the same episodes, runs and episodes are resampled
    independently (A. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007).

    Limits, stated plainly: of one run the interval covers the luck of the *episodes*, not of the
    training seed; with few values it is too narrow; and values that are all equal, a single one
    included, give `[v, v]`, which means "no spread was seen", not "certain".

    Raises ValueError when `values` is empty, of another shape or not finite.
    """
    x = _table(values)
    if len(x) == 1:
        x = np.sort(x)  # independent of the order in which workers finished
    if x.min() == x.max():
        return {"mean": float(x[0, 0]), "ci95": [float(x[0, 0])] * 2}
    lo, hi = np.quantile(resampled_means([x], seed)[0], [0.025, 0.975])
    return {"mean": float(x.mean()), "ci95": [float(lo), float(hi)]}


def wilson(successes: int, n: int) -> dict[str, Any]:
    """Success rate `successes / n` with the Wilson score interval at 95 %.

    Returns `{"mean": float, "ci95": [lo, hi]}`, proportions in [0, 1]. Unlike the bootstrap it
    stays honest at 0 and n successes. Source: E. B. Wilson, "Probable Inference, the Law of
    Succession, and Statistical Inference", JASA 22, 1927.

    Raises ValueError unless 0 <= successes <= n and n >= 1, both whole numbers.
    """
    if int(n) != n or int(successes) != successes:
        raise ValueError(f"successes and n must be whole numbers; got {successes} of {n}.")
    if n < 1:
        raise ValueError(f"n is {n}: evaluate at least one episode first.")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n; got {successes} of {n}.")
    ci = binomtest(int(successes), int(n)).proportion_ci(confidence_level=0.95, method="wilson")
    return {"mean": float(successes / n), "ci95": [float(ci.low), float(ci.high)]}


def success_rate(successes: ArrayLike) -> dict[str, Any]:
    """Share of successes, each 0 or 1, (n,) of one run or (s, n) of s training runs.

    Of one run with the interval of `wilson`; of several with that of `mean_ci`, since `wilson`
    would take runs that share a training for independent.

    Raises ValueError when `successes` is empty, of another shape or not 0 or 1.
    """
    x = _table(successes, "successes")
    if not np.isin(x, (0, 1)).all():
        raise ValueError("successes must be 0 or 1 each.")
    return wilson(int(x.sum()), x.size) if len(x) == 1 else mean_ci(x)


def paired_difference(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> dict[str, Any]:
    """Mean of a - b over the same episodes, with a percentile bootstrap interval.

    `a` and `b` are (n,) episodes, or (s, n) of s training runs each (as many or not); column i of
    both is the same episode. Pairing removes the luck of the initial states that both policies
    share, so it tells smaller differences apart than two separate intervals do. Training runs are
    not paired: each side's are resampled by themselves.

    Returns `{"diff": float, "ci95": [lo, hi]}`, in the units of the values; see `mean_ci` for the
    limits of the interval.

    Raises ValueError when the numbers of episodes differ, or when a value is missing or not finite.
    """
    return paired_differences({"a": a, "b": b}, seed=seed)["a", "b"]


def paired_differences(
    values: Mapping[str, ArrayLike], *, seed: int = 0
) -> dict[tuple[str, str], dict[str, Any]]:
    """`paired_difference` of every two of some named values; episodes are drawn once for all."""
    tables = {name: _table(x, name) for name, x in values.items()}
    for a, b in combinations(tables, 2):
        counts = [tables[name].shape[1] for name in (a, b)]
        if counts[0] != counts[1]:
            raise ValueError(f"{a} and {b} must pair up: they have {counts[0]} and {counts[1]}.")
    means: dict[str, np.ndarray] = {}
    if any(len(x) > 1 for x in tables.values()):
        means = dict(zip(tables, resampled_means(list(tables.values()), seed), strict=True))
    differences = {}
    for a, b in combinations(tables, 2):
        x, y = tables[a], tables[b]
        if len(x) == len(y) == 1:
            result = mean_ci(x - y, seed=seed)
            differences[a, b] = {"diff": result["mean"], "ci95": result["ci95"]}
        else:
            lo, hi = np.quantile(means[a] - means[b], [0.025, 0.975])
            differences[a, b] = {"diff": float(x.mean() - y.mean()), "ci95": [float(lo), float(hi)]}
    return differences


def aggregates(values: Mapping[str, Mapping[str, ArrayLike]], *, seed: int = 0) -> dict[str, Any]:
    """Several policies over several tasks: means, interquartile means, and each against the first.

    `values[policy][task]` is (n,) episodes or (s, n) of s training runs, s being the same on all
    tasks; column i of a task is the same episode for all policies. What is aggregated is a run's
    mean on a task, s * K numbers. The interquartile mean leaves out a quarter of them at each end
    (`scipy.stats.trim_mean`). The probability that a run of the first policy is better than one of
    another on the same task (ties count half) is the mean over tasks. Source: R. Agarwal et al.,
    "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.

    Intervals are percentiles of a stratified bootstrap: within each task, episodes are drawn again,
    the same ones for all policies, and each policy's runs by themselves. Tasks are not drawn: the
    intervals speak of these tasks alone. The paper draws runs alone, which is what remains with
    one episode (n = 1). Of one run a task, intervals cover the luck of the episodes, not of the
    training seed; of several they are a little wide, since a run's mean holds that luck already,
    and it pulls the resampled probabilities towards a half. A task on which nothing varies adds
    nothing to the width (see `mean_ci`). Results depend neither on the order of the tasks nor on
    that of the policies, but for which is first.

    Returns `entries` `{policy: {"mean": {mean, ci95}, "iqm": {mean, ci95}}}`, `paired`
    `[{a, b, metric, diff, ci95}]` and `improvement` `[{a, b, mean, ci95}]`, a the first policy.

    Raises ValueError when there is nothing, a task lacks a policy or episodes that others have, a
    policy has more runs on one task than on another, or a value is not finite.
    """
    resampled = _resampled_scores(values, seed)
    by_metric = {
        name: {
            "mean": scores.mean((1, 2)),
            "iqm": trim_mean(scores.reshape(len(scores), -1), 0.25, axis=1),
        }
        for name, scores in resampled.items()
    }
    first, *other_names = resampled
    return {
        "entries": {
            name: {metric: estimate(x) for metric, x in metrics.items()}
            for name, metrics in by_metric.items()
        },
        "paired": [
            {
                "a": first,
                "b": name,
                "metric": metric,
                **estimate(x - by_metric[name][metric], "diff"),
            }
            for name in other_names
            for metric, x in by_metric[first].items()
        ],
        "improvement": [
            {"a": first, "b": name, **estimate(_better(resampled[first], resampled[name]))}
            for name in other_names
        ],
    }


def _resampled_scores(
    values: Mapping[str, Mapping[str, ArrayLike]], seed: int
) -> dict[str, np.ndarray]:
    """Mean scores of each policy's runs on each task, (1 + R, s, K); the first are as played."""
    if not values or not all(values.values()):
        raise ValueError("There is nothing to aggregate: give at least one policy and one task.")
    tasks = sorted(set().union(*values.values()))
    scores: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for task in tasks:
        if absent := [name for name, by_task in values.items() if task not in by_task]:
            raise ValueError(
                f"'{absent[0]}' has no values of the task '{task}' that others played."
            )
        tables = {name: _table(by_task[task], name) for name, by_task in values.items()}
        counts = {table.shape[1] for table in tables.values()}
        if len(counts) > 1:
            raise ValueError(f"The policies did not play the same episodes of '{task}'.")
        n = counts.pop()
        # Seeded by names, so that neither order nor company changes what is drawn.
        key = (seed, crc32(task.encode()))
        draws = np.random.default_rng(key).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        draws = np.concatenate([np.ones((1, n)), draws])
        for name, table in tables.items():
            s = len(table)
            rng = np.random.default_rng((*key, crc32(name.encode())))
            runs = np.concatenate([[np.arange(s)], rng.integers(s, size=(RESAMPLES, s))])
            scores[name].append(np.take_along_axis(draws @ table.T / n, runs, axis=1))
    for name, by_task in scores.items():
        if len({table_means.shape for table_means in by_task}) > 1:
            raise ValueError(f"'{name}' must have as many training runs on every task.")
    return {name: np.stack(by_task, axis=2) for name, by_task in scores.items()}


def _better(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How often a run of a (R, s, K) beats one of b (R, t, K) on its task, (R,)."""
    x, y = a[:, :, None], b[:, None]
    return ((x > y) + (x == y) / 2).mean((1, 2, 3))


def estimate(values: np.ndarray, name: str = "mean") -> dict[str, Any]:
    """An estimate with the percentiles of its resamples, (1 + R,), itself the first."""
    lo, hi = np.quantile(values[1:], [0.025, 0.975])
    return {name: float(values[0]), "ci95": [float(lo), float(hi)]}


def percentiles(values: ArrayLike) -> dict[str, float]:
    """50th, 95th and 99th percentile of `values` (n,), linearly interpolated, in their units.

    Raises ValueError when `values` is empty, not one-dimensional or not finite.
    """
    if np.ndim(values) != 1:
        raise ValueError(f"values must be one-dimensional; got {np.shape(values)}.")
    x = _table(values)
    p50, p95, p99 = np.percentile(x, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}
