"""Statistics of features in LeRobot's data sets, which its policies normalise with.

Shapes: L rows of an episode, D numbers, n frames of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Statistics = dict[str, np.ndarray]


def row_statistics(rows: np.ndarray) -> Statistics:
    """Return min, max, mean, std and quantiles (D,) of rows (L, D), and their count (1,)."""
    values = rows.astype(np.float64)
    return {
        "min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0),
        **{name: np.quantile(values, q, axis=0) for name, q in QUANTILES.items()},
        "count": np.array([len(rows)]),
    }  # fmt: skip


def frame_statistics(frames: np.ndarray) -> Statistics:
    """Return statistics (3, 1, 1) of the channels of frames (n, H, W, 3), in the range 0 to 1."""
    statistics = row_statistics(frames.reshape(-1, 3) / 255.0)
    shaped = {name: values.reshape(3, 1, 1) for name, values in statistics.items()
              if name != "count"}  # fmt: skip
    return {**shaped, "count": np.array([len(frames)])}


def combine_statistics(episodes: Sequence[dict[str, Any]]) -> dict[str, Statistics]:
    """Return the statistics of all episodes; quantiles are weighted means of theirs."""
    return {name: _combine([episode[name] for episode in episodes]) for name in episodes[0]}


def _combine(parts: Sequence[Statistics]) -> Statistics:
    counts = np.array([part["count"][0] for part in parts], dtype=np.float64)
    weights = counts / counts.sum()

    def average(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.tensordot(weights, np.stack(values), axes=1)

    mean = average([part["mean"] for part in parts])
    spread = average([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(spread),
        **{name: average([part[name] for part in parts]) for name in QUANTILES},
        "count": np.array([int(counts.sum())]),
    }
