"""How a loss falls as something grows: power laws, their ratio, and the level beside it.

Perplexity is taken to fall as x^-b, so that the loss, its logarithm, is a line in log x with slope
-b: b is the *scaling rate*. A rate says nothing of the level (a model that starts badly may fall
fast), so levels at equal x and at equal training FLOPs stand beside it.

Shapes: s training runs, n held-out windows, P points of a model, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebt_policy.evaluation.statistics import estimate, mean_ci, resampled_means


@dataclass(frozen=True)
class Point:
    """Training runs of one model at one place of an axis.

    Attributes:
        x: the place.
        flops: of one run's training.
        params: of the model.
        losses: (s, n) held-out loss of each run on each window, nats.
        lr: learning rate of the runs.
    """

    x: float
    flops: float
    params: int
    losses: np.ndarray
    lr: float


def scaling_law(points: Mapping[str, Sequence[Point]], *, seed: int = 0) -> dict[str, Any]:
    """Scaling rates of several models along an axis, each against the last, the baseline.

    Intervals are percentiles of 10,000 resamples: windows, the same for all, and the runs of each
    point. They cover the luck of windows and training seeds, not whether a power law is true.

    Returns `{model: {points, rate, ratio, same_place, equal_flops}}` with `{mean, ci95}` each, of
    points as `{x, flops, params, lr, loss}`; `ratio` of rates is over the baseline's, the levels
    are losses less the baseline's, nats: `same_place` the mean over the places, in their order,
    `equal_flops` in the middle of the FLOPs that both span, on each model's own line (None where
    they span nothing in common).

    Raises:
        ValueError: fewer than two places, or not as many for all models.
    """
    *_, base = points
    if any(
        len({p.x for p in model_points}) < 2 or len(model_points) != len(points[base])
        for model_points in points.values()
    ):
        raise ValueError("a scaling law needs two places or more, as many for all models.")
    tables = [point.losses for model_points in points.values() for point in model_points]
    resampled = np.stack(resampled_means(tables, seed), axis=1)  # (R, all points)
    observed = np.array([table.mean() for table in tables])
    all_means = np.concatenate([observed[None], resampled])  # the first row is what was seen
    by_model = dict(zip(points, np.split(all_means, len(points), axis=1), strict=True))
    over_x = {name: _line([p.x for p in points[name]], y) for name, y in by_model.items()}
    over_flops = {name: _line([p.flops for p in points[name]], y) for name, y in by_model.items()}
    result: dict[str, Any] = {}
    for name, model_points in points.items():
        slope, base_slope = over_x[name][1], over_x[base][1]
        common_flops = _common_flops(model_points, points[base])
        result[name] = {
            "points": [
                {"x": p.x, "flops": p.flops, "params": p.params, "lr": p.lr}
                | {"loss": mean_ci(p.losses)}
                for p in model_points
            ],
            "rate": estimate(-slope),
            "ratio": estimate(slope / base_slope),
            "same_place": estimate((by_model[name] - by_model[base]).mean(1)),
            "equal_flops": None
            if common_flops is None
            else {"flops": common_flops}
            | estimate(
                _evaluate_line(over_flops[name], common_flops)
                - _evaluate_line(over_flops[base], common_flops)
            ),
        }
    return result


def _line(x: Sequence[float], y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of y (R, P) over log x, P places: intercepts and slopes, (R,) each."""
    log_x = np.log(x)
    centred = log_x - log_x.mean()
    slope = y @ centred / (centred @ centred)
    return y.mean(1) - slope * log_x.mean(), slope


def _evaluate_line(line: tuple[np.ndarray, np.ndarray], flops: float) -> np.ndarray:
    return line[0] + line[1] * np.log(flops)


def _common_flops(a: Sequence[Point], b: Sequence[Point]) -> float | None:
    """The geometric middle of what both span."""
    low = max(min(p.flops for p in points) for points in (a, b))
    high = min(max(p.flops for p in points) for points in (a, b))
    return float(np.sqrt(low * high)) if low < high else None
