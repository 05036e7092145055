"""Means, proportions and differences, each with a 95 % interval.

Each interval is a list `[lo, hi]` of floats, which JSON can store. The bootstrap has its own seeded
generator, so results do not depend on global random state. For a single run it resamples *sorted*
values, so that the order of the episodes does not matter either.

Shapes: n episodes, s training runs that played the same episodes, K tasks, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
_BLOCK = 4_000_000  # numbers drawn at once, which limits the memory of a bootstrap to about 64 MB


def _table(values: ArrayLike, name: str = "values") -> np.ndarray:
    """Check values (n,) or (s, n), and return them as (s, n)."""
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


def resampled_means(
    tables: Sequence[np.ndarray], seed: int, runs: Sequence[Hashable] | None = None
) -> list[np.ndarray]:
    """Return means (`RESAMPLES`,) of bootstrap resamples of each table (s_i, n).

    Episodes are resampled jointly for all tables. Runs are resampled jointly for tables of the same
    training runs, and separately for others.

    Args:
        tables: tables of values.
        seed: seed of the bootstrap.
        runs: identity of the training runs of each table; None if all differ.
    """
    runs = range(len(tables)) if runs is None else runs
    rng = np.random.default_rng(seed)
    n = tables[0].shape[1]
    means: list[list[np.ndarray]] = [[] for _ in tables]
    block = max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        episodes = rng.multinomial(n, np.full(n, 1 / n), size=rows)
        drawn: dict[Hashable, np.ndarray] = {}
        for x, run, blocks in zip(tables, runs, means, strict=True):
            if run not in drawn:
                drawn[run] = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=rows)
            blocks.append(((drawn[run] @ x) * episodes).sum(1) / x.size)
    return [np.concatenate(blocks) for blocks in means]


def mean_ci(values: ArrayLike, *, seed: int = 0) -> dict[str, Any]:
    """Return the mean of values with a bootstrap interval.

    The interval is a percentile bootstrap with 10,000 resamples (B. Efron and R. Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13). With several training runs, runs and episodes
    are resampled independently (A. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics
    1, 2007).

    The interval has limits. For one run it reflects variation between *episodes*, not between
    training seeds. With few values it is too narrow. If all values are equal, it is `[v, v]`, which
    does not mean that the result is certain.

    Args:
        values: (n,) episodes, or (s, n) episodes of s training runs.
        seed: seed of the bootstrap.

    Returns:
        `{"mean": float, "ci95": [lo, hi]}`, in the units of the values.

    Raises:
        ValueError: `values` is empty, has another shape or is not finite.
    """
    x = _table(values)
    if len(x) == 1:
        x = np.sort(x)  # independent of the order in which workers finished
    if x.min() == x.max():
        return {"mean": float(x[0, 0]), "ci95": [float(x[0, 0])] * 2}
    lo, hi = np.quantile(resampled_means([x], seed)[0], [0.025, 0.975])
    return {"mean": float(x.mean()), "ci95": [float(lo), float(hi)]}


def wilson(successes: int, n: int) -> dict[str, Any]:
    """Return the success rate `successes / n` with the Wilson score interval at 95 %.

    Unlike the bootstrap, it is also valid at 0 and n successes. Source: E. B. Wilson, "Probable
    Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927.

    Returns:
        `{"mean": float, "ci95": [lo, hi]}`, proportions in [0, 1].

    Raises:
        ValueError: unless 0 <= successes <= n and n >= 1, both whole numbers.

    >>> result = wilson(45, 50)
    >>> result["mean"], [round(x, 3) for x in result["ci95"]]
    (0.9, [0.786, 0.957])
    """
    if int(n) != n or int(successes) != successes:
        raise ValueError(f"successes and n must be whole numbers; got {successes} of {n}.")
    if n < 1:
        raise ValueError(f"n is {n}: evaluate at least one episode first.")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n; got {successes} of {n}.")
    from scipy.stats import binomtest  # slow to import

    ci = binomtest(int(successes), int(n)).proportion_ci(confidence_level=0.95, method="wilson")
    return {"mean": float(successes / n), "ci95": [float(ci.low), float(ci.high)]}


def success_rate(successes: ArrayLike) -> dict[str, Any]:
    """Return the fraction of successes with an interval.

    The interval is `wilson` for one training run. For several runs it is `mean_ci`, because
    `wilson` would treat the episodes of a run as independent.

    Args:
        successes: 0 or 1, (n,) of one training run or (s, n) of s training runs.

    Raises:
        ValueError: `successes` is empty, has another shape or values other than 0 and 1.
    """
    x = _table(successes, "successes")
    if not np.isin(x, (0, 1)).all():
        raise ValueError("each of the successes must be 0 or 1.")
    return wilson(int(x.sum()), x.size) if len(x) == 1 else mean_ci(x)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, same_runs: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Return the mean of a - b over the same episodes, with a percentile bootstrap interval.

    Pairing removes the variation of initial states, which both policies share. So it detects
    smaller differences than two separate intervals. If a and b are the same training runs with
    other inference options, the runs are paired, too. Otherwise they are resampled separately.

    Args:
        a, b: (n,) episodes, or (s, n) episodes of s training runs; s may differ. Column i of both
            is the same episode.
        same_runs: whether row i of both is the same training run.
        seed: seed of the bootstrap.

    Returns:
        `{"diff": float, "ci95": [lo, hi]}`, in the units of the values; see `mean_ci` for the
        limits of the interval.

    Raises:
        ValueError: the numbers of episodes differ, or a value is not finite.

    >>> result = paired_difference([1.0, 0.9, 0.8], [0.9, 0.8, 0.7])
    >>> round(result["diff"], 3), [round(x, 3) for x in result["ci95"]]
    (0.1, [0.1, 0.1])
    """
    runs = {"a": 0, "b": 0 if same_runs else 1}
    return paired_differences({"a": a, "b": b}, runs, seed=seed)["a", "b"]


def paired_differences(
    values: Mapping[str, ArrayLike],
    runs: Mapping[str, Hashable] | None = None,
    *,
    seed: int = 0,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return `paired_difference` of each pair of named values, with the same resampled episodes.

    Args:
        values: name -> values, as in `paired_difference`.
        runs: name -> identity of its training runs; None if all differ.
        seed: seed of the bootstrap.
    """
    tables = {name: _table(x, name) for name, x in values.items()}
    for a, b in combinations(tables, 2):
        counts = [tables[name].shape[1] for name in (a, b)]
        if counts[0] != counts[1]:
            raise ValueError(
                f"{a} and {b} must have equally many episodes, got {counts[0]} and {counts[1]}."
            )
    means: dict[str, np.ndarray] = {}
    if any(len(x) > 1 for x in tables.values()):
        groups = None if runs is None else [runs[name] for name in tables]
        resampled = resampled_means(list(tables.values()), seed, groups)
        means = dict(zip(tables, resampled, strict=True))
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


def aggregates(
    values: Mapping[str, Mapping[str, ArrayLike]],
    runs: Mapping[str, Hashable] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return aggregates of several policies over several tasks, compared with the first policy.

    The aggregates are over the mean of each run on each task, s * K numbers. The interquartile mean
    omits a quarter of them at each end (`scipy.stats.trim_mean`). The improvement is the
    probability that a run of the first policy is better than a run of another policy on a task. It
    is averaged over tasks, and ties count half. Source: R. Agarwal et al., "Deep Reinforcement
    Learning at the Edge of the Statistical Precipice", NeurIPS 2021.

    Intervals are percentiles of a stratified bootstrap. Within each task, episodes are resampled
    jointly for all policies. Runs are resampled jointly for policies of the same training runs, and
    separately for others. Tasks are not resampled, so the intervals are valid for these tasks only.
    The paper resamples only runs, which is the same with one episode (n = 1).

    With one run per task, intervals reflect variation between episodes, not between training seeds.
    With several runs they are slightly too wide if runs are alike, because the mean of a run
    already varies with the episodes; with two or three runs that differ much, they are too narrow.
    This variation also pulls the resampled probabilities towards 0.5. A task without
    variation does not widen the interval (see `mean_ci`). Results do not depend on the order of
    tasks and policies, except for the choice of the first policy.

    Args:
        values: policy -> task -> (n,) episodes, or (s, n) episodes of s training runs, with the
            same s on all tasks. Column i of a task is the same episode for all policies.
        runs: policy -> identity of its training runs; None if all differ.
        seed: seed of the bootstrap.

    Returns:
        `entries` `{policy: {"mean": {mean, ci95}, "iqm": {mean, ci95}}}`, `paired`
        `[{a, b, metric, diff, ci95}]` and `improvement` `[{a, b, mean, ci95}]`; a is the first
        policy.

    Raises:
        ValueError: there are no values, policies differ in their tasks or episodes, a policy has
            different numbers of runs on its tasks, or a value is not finite.
    """
    from scipy.stats import trim_mean  # slow to import

    resampled = _resampled_scores(values, runs or {}, seed)
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
    values: Mapping[str, Mapping[str, ArrayLike]], runs: Mapping[str, Hashable], seed: int
) -> dict[str, np.ndarray]:
    """Return mean scores of runs on tasks, (1 + R, s, K); the first row is not resampled."""
    # Policies of the same runs share the random numbers of the first of them by name.
    leaders: dict[Hashable, str] = {}
    for name in sorted(values):
        leaders.setdefault(runs.get(name, name), name)
    if not values or not all(values.values()):
        raise ValueError("There is nothing to aggregate: pass at least one policy and one task.")
    tasks = sorted(set().union(*values.values()))
    scores: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for task in tasks:
        if absent := [name for name, by_task in values.items() if task not in by_task]:
            raise ValueError(
                f"'{absent[0]}' has no values of the task '{task}', which other policies have."
            )
        tables = {name: _table(by_task[task], name) for name, by_task in values.items()}
        counts = {table.shape[1] for table in tables.values()}
        if len(counts) > 1:
            raise ValueError(f"The policies did not play the same episodes of '{task}'.")
        n = counts.pop()
        # Seeds from names make the samples independent of the order and of other policies.
        key = (seed, crc32(task.encode()))
        draws = np.random.default_rng(key).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        draws = np.concatenate([np.ones((1, n)), draws])
        for name, table in tables.items():
            s = len(table)
            leader = leaders[runs.get(name, name)]
            rng = np.random.default_rng((*key, crc32(leader.encode())))
            drawn = np.concatenate([[np.arange(s)], rng.integers(s, size=(RESAMPLES, s))])
            scores[name].append(np.take_along_axis(draws @ table.T / n, drawn, axis=1))
    for name, by_task in scores.items():
        if len({table_means.shape for table_means in by_task}) > 1:
            raise ValueError(f"'{name}' must have the same number of training runs on every task.")
    return {name: np.stack(by_task, axis=2) for name, by_task in scores.items()}


def _better(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how often a run of a (R, s, K) beats a run of b (R, t, K) on the same task, (R,)."""
    x, y = a[:, :, None], b[:, None]
    return ((x > y) + (x == y) / 2).mean((1, 2, 3))


def estimate(values: np.ndarray, name: str = "mean") -> dict[str, Any]:
    """Return the first value of (1 + R,) with the 95 % interval of the others, its resamples."""
    lo, hi = np.quantile(values[1:], [0.025, 0.975])
    return {name: float(values[0]), "ci95": [float(lo), float(hi)]}


def percentiles(values: ArrayLike) -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile of `values` (n,), linearly interpolated.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite.
    """
    if np.ndim(values) != 1:
        raise ValueError(f"values must be one-dimensional; got {np.shape(values)}.")
    x = _table(values)
    p50, p95, p99 = np.percentile(x, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}
