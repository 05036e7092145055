"""Linear probes: classification accuracy of a linear model on frozen features."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.device import DEVICE
from ebt_policy.image.model import ImageModel

PROBED_LEVELS = (0, 25, 50, 100)  # noise levels of the images
BATCH = 256


def linear_probe(
    features: Callable[[str], np.ndarray], labels: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, float]:
    """Fit a linear probe on the split ``train``.

    Args:
        features: name of a split -> features (n, F).
        labels: name of a split -> classes (n,).

    Returns:
        Whether each image of the split ``test`` is classified correctly, (n,), and the accuracy on
        the split ``validation``.
    """
    scaler = StandardScaler()
    probe = LogisticRegression(max_iter=3000)  # 300 are too few for some models.
    probe.fit(scaler.fit_transform(features("train")), labels["train"])
    correct = {
        split: np.equal(probe.predict(scaler.transform(features(split))), labels[split])
        for split in ("validation", "test")
    }
    return correct["test"].astype(float), float(correct["validation"].mean())


def probe_model(
    model: ImageModel, images: Mapping[str, Tensor], labels: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, int]:
    """Probe a model's features at the noise level with the highest validation accuracy.

    Args:
        model: frozen model.
        images: name of a split -> images (n, C, S, S).
        labels: name of a split -> classes (n,).

    Returns:
        Whether each test image is classified correctly, (n,), and the noise level.
    """
    best: tuple[float, np.ndarray, int] | None = None
    for level in PROBED_LEVELS:
        generator = torch.Generator().manual_seed(0)

        def features(split: str, level: int = level, generator: torch.Generator = generator):
            batches = images[split].split(BATCH)
            rows = [model.features(x.to(DEVICE), level, generator=generator) for x in batches]
            return torch.cat([x.cpu() for x in rows]).numpy()

        correct, accuracy = linear_probe(features, labels)
        if best is None or accuracy > best[0]:
            best = accuracy, correct, level
    assert best is not None
    return best[1], best[2]
