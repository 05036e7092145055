"""Scaling laws: how a loss falls along an axis, as rates, ratios of rates and loss differences.

Perplexity is modelled as a power law x^-b. The loss is its logarithm, a line in log x with slope
-b, and b is the *scaling rate*. A model with a high rate can still have a higher loss, so losses
are also compared at equal x and at equal training FLOPs.

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
    """Training runs of one model at one value of the axis.

    Attributes:
        x: value on the axis.
        flops: training FLOPs of one run.
        params: number of parameters of the model.
        losses: (s, n) held-out loss of each run on each window, in nats.
        lr: learning rate of the runs.
    """

    x: float
    flops: float
    params: int
    losses: np.ndarray
    lr: float


def scaling_law(points: Mapping[str, Sequence[Point]], *, seed: int = 0) -> dict[str, Any]:
    """Return scaling rates of several models along an axis, compared with the baseline.

    Intervals are percentiles of 10,000 resamples of the windows, jointly for all points, and of the
    runs of each point. They reflect variation between windows and training seeds, but not whether a
    power law holds.

    Args:
        points: model -> points; the last model is the baseline.
        seed: seed of the bootstrap.

    Returns:
        `{model: {points, rate, ratio, same_place, equal_flops}}`, each quantity as `{mean, ci95}`
        and each point as `{x, flops, params, lr, loss}`. `ratio` is the rate divided by the
        baseline's rate. `same_place` is the loss minus the baseline's loss in nats, averaged over
        points of the same rank. `equal_flops` is the difference of both fitted lines in the middle
        of their common range of FLOPs; None if they have no common range.

    Raises:
        ValueError: a model has fewer than two values of x, or another number of points.
    """
    *_, base = points
    if any(
        len({p.x for p in model_points}) < 2 or len(model_points) != len(points[base])
        for model_points in points.values()
    ):
        raise ValueError(
            "a scaling law needs at least two values of x, and equally many points for all models."
        )
    tables = [point.losses for model_points in points.values() for point in model_points]
    resampled = np.stack(resampled_means(tables, seed), axis=1)  # (R, all points)
    observed = np.array([table.mean() for table in tables])
    all_means = np.concatenate([observed[None], resampled])  # the first row has the observed means
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
    """Return intercepts and slopes (R,) of least-squares lines of y (R, P) over log x."""
    log_x = np.log(x)
    centred = log_x - log_x.mean()
    slope = y @ centred / (centred @ centred)
    return y.mean(1) - slope * log_x.mean(), slope


def _evaluate_line(line: tuple[np.ndarray, np.ndarray], flops: float) -> np.ndarray:
    return line[0] + line[1] * np.log(flops)


def _common_flops(a: Sequence[Point], b: Sequence[Point]) -> float | None:
    """Return the geometric middle of the common range of FLOPs, or None without a common range."""
    low = max(min(p.flops for p in points) for points in (a, b))
    high = min(max(p.flops for p in points) for points in (a, b))
    return float(np.sqrt(low * high)) if low < high else None
