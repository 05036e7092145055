"""How well a signal predicts a binary event: area under the ROC curve, calibration, reliability.

Shapes: n samples of one training run, R resamples. Intervals resample episodes and not samples,
because the samples of one episode are correlated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ebt_policy.evaluation.statistics import wilson

RESAMPLES = 1000


class Samples(NamedTuple):
    """Samples of one training run: signal (n,), binary label (n,), episode number (n,)."""

    signal: np.ndarray
    label: np.ndarray
    episode: np.ndarray


def auroc(runs: Sequence[Samples], *, seed: int = 0) -> dict[str, Any]:
    """Return the area under the ROC curve of a signal that should be high for positive labels.

    It is the probability that a positive sample has a higher signal than a negative one (Mann &
    Whitney 1947; ties count half), averaged over training runs. The percentile bootstrap resamples
    episodes, jointly for all runs, and runs.

    Returns:
        `{"mean": float, "ci95": [lo, hi]}`. 0.5 is chance level; below it, the signal is lower for
        positive labels.

    Raises:
        ValueError: no run has both positive and negative labels, or a signal is not finite.
    """
    for run in runs:
        if not np.isfinite(run.signal).all():
            raise ValueError("a signal contains NaN or infinity.")
    runs = [run for run in runs if 0 < np.count_nonzero(run.label) < len(run.label)]
    if not runs:
        raise ValueError("at least one run must have both positive and negative labels.")
    episodes = 1 + max(int(run.episode.max()) for run in runs)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=RESAMPLES)
    draws = np.concatenate([np.ones((1, episodes)), draws])  # the first row is the estimate
    areas = np.stack([_areas(run, draws[:, run.episode]) for run in runs])  # (runs, 1 + R)
    weights = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=RESAMPLES).T
    weights = weights * np.isfinite(areas[:, 1:])
    weights, resampled = weights[:, weights.any(0)], areas[:, 1:][:, weights.any(0)]
    means = (np.nan_to_num(resampled) * weights).sum(0) / weights.sum(0)
    lo, hi = np.quantile(means, [0.025, 0.975])
    return {"mean": float(areas[:, 0].mean()), "ci95": [float(lo), float(hi)]}


def _areas(run: Samples, weights: np.ndarray) -> np.ndarray:
    """Return areas (R,) for weights (R, n); NaN if all weighted samples have the same label."""
    values, place = np.unique(run.signal, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(values)))
    label = run.label.astype(bool)
    yes, no = (
        np.add.reduceat((weights * kind)[:, order], starts, axis=1) for kind in (label, ~label)
    )
    below = np.cumsum(no, axis=1) - no
    with np.errstate(invalid="ignore"):
        return (yes * (below + no / 2)).sum(1) / (yes.sum(1) * no.sum(1))


class Calibration:
    """Increasing map from a signal to a probability, fitted by isotonic regression.

    Args:
        signal, label: (n,) samples to fit the map to; labels are 0 or 1.
    """

    def __init__(self, signal: np.ndarray, label: np.ndarray) -> None:
        from scipy.optimize import isotonic_regression  # slow to import

        order = np.argsort(signal, kind="stable")
        self._signal = signal[order]
        self._probability = np.asarray(isotonic_regression(label[order].astype(float)).x)

    def __call__(self, signal: np.ndarray) -> np.ndarray:
        """Return probabilities (n,), interpolated linearly between the fitted signals."""
        return np.interp(signal, self._signal, self._probability)


def reliability(predicted: np.ndarray, label: np.ndarray, bins: int = 5) -> dict[str, Any]:
    """Compare predicted probabilities with observed frequencies.

    Args:
        predicted: (n,) probabilities of samples that the calibration was not fitted to.
        label: (n,) 0 or 1.
        bins: number of bins of nearly equal size.

    Returns:
        `bins` from low to high, as `{"predicted", "observed": {mean, ci95}, "n"}`; the expected
        calibration error (weighted mean distance of both); the Brier score, and the Brier score of
        always predicting the mean.
    """
    bin_indices = [
        index for index in np.array_split(np.argsort(predicted, kind="stable"), bins) if len(index)
    ]
    table = [
        {
            "predicted": float(predicted[index].mean()),
            "observed": wilson(int(label[index].sum()), len(index)),
            "n": len(index),
        }
        for index in bin_indices
    ]
    gaps = [abs(row["predicted"] - row["observed"]["mean"]) * row["n"] for row in table]
    return {
        "bins": table,
        "calibration_error": float(sum(gaps) / len(predicted)),
        "brier": float(np.square(predicted - label).mean()),
        "brier_of_mean": float(np.square(label.mean() - label).mean()),
    }


def held_out_reliability(runs: Sequence[Samples]) -> dict[str, Any]:
    """Calibrate each run on episodes of even number; return `reliability` on the odd ones."""
    predicted, observed = [], []
    for run in runs:
        even = run.episode % 2 == 0
        calibrated = Calibration(run.signal[even], run.label[even])
        predicted.append(calibrated(run.signal[~even]))
        observed.append(run.label[~even])
    return reliability(np.concatenate(predicted), np.concatenate(observed).astype(float))
