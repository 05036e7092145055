"""Out-of-distribution detection: images that differ from a model's training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.device import DEVICE
from ebt_policy.evaluation.detection import Samples, auroc, held_out_reliability
from ebt_policy.image.model import ImageModel

BATCH = 256

Scores = Mapping[str, Mapping[str, np.ndarray]]  # group -> signal -> (N,)


class ImageGroup(NamedTuple):
    """Images (N, C, S, S), and the indices (N,) of the larger images that they are crops of.

    The bootstrap resamples these sources. None means that each image is its own source.
    """

    images: Tensor
    sources: np.ndarray | None = None


def model_scores(model: ImageModel, images: Tensor) -> dict[str, np.ndarray]:
    """Return a model's signals (N,) of images; high values should be out of distribution."""
    generator = torch.Generator().manual_seed(0)
    batch_scores = [model.ood_scores(x.to(DEVICE), generator) for x in images.split(BATCH)]
    return {
        name: torch.cat([scores[name] for scores in batch_scores]).cpu().numpy()
        for name in batch_scores[0]
    }


def roughness(images: Tensor) -> np.ndarray:
    """Return a signal without a model: the mean difference of neighbouring pixels, (N,)."""
    return images.diff(dim=-1).abs().flatten(1).mean(1).numpy()


def detection_quality(runs: Sequence[Scores], groups: Mapping[str, ImageGroup]) -> dict[str, Any]:
    """Measure how well each signal detects each group of images, over training runs.

    Args:
        runs: the signals of each training run.
        groups: the first group is in distribution; each other group is detected against it.

    Returns:
        Signal -> group -> area under the ROC curve and reliability.
    """
    usual, *other_groups = groups
    sources = {
        name: np.arange(len(group.images)) if group.sources is None else group.sources
        for name, group in groups.items()
    }
    result: dict[str, Any] = {}
    for signal in runs[0][usual]:
        result[signal] = {}
        for other in other_groups:
            samples = [
                _samples(scores[usual][signal], scores[other][signal], sources[usual],
                         sources[other])
                for scores in runs
            ]  # fmt: skip
            result[signal][other] = {
                "auroc": auroc(samples),
                "reliability": held_out_reliability(samples),
            }
    return result


def _samples(
    usual: np.ndarray, other: np.ndarray, usual_sources: np.ndarray, other_sources: np.ndarray
) -> Samples:
    # Groups share no source, so indices of the second group are shifted behind the first group.
    sources = np.concatenate([usual_sources, other_sources + len(usual_sources)])
    odd = np.repeat([False, True], [len(usual_sources), len(other_sources)])
    return Samples(np.concatenate([usual, other]), odd, sources)
