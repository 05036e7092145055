"""Image quality against the clean images: PSNR, SSIM and mean squared error.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)


def psnr(images: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (N,), in dB, of images (N, C, H, W) in [-1, 1]."""
    ratio: Any = peak_signal_noise_ratio(
        images, clean, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3)
    )
    return ratio


def compute_metrics(images: Sequence[Tensor], clean: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Return ``psnr`` in dB, ``ssim`` and ``mse`` of 8-bit values, (N,) each.

    Args:
        images, clean: N images (C, H, W) in [-1, 1]; their sizes may differ.
    """
    return _by_size(_metrics, images, clean)


def compute_psnr(images: Sequence[Tensor], clean: Sequence[Tensor]) -> np.ndarray:
    """Return the `psnr` (N,) of images whose sizes may differ."""

    def metrics(batch: Tensor, truth: Tensor) -> dict[str, np.ndarray]:
        return {"psnr": psnr(batch, truth).reshape(-1).cpu().numpy()}

    return _by_size(metrics, images, clean)["psnr"]


def _metrics(images: Tensor, clean: Tensor) -> dict[str, np.ndarray]:
    """Return all metrics of images (N, C, H, W) of the same size."""
    ssim: Any = structural_similarity_index_measure(images, clean, data_range=2.0, reduction="none")
    error = (images - clean).square().flatten(1).mean(1) * 127.5**2
    metrics = {"psnr": psnr(images, clean), "ssim": ssim, "mse": error}
    return {name: value.reshape(len(images)).cpu().numpy() for name, value in metrics.items()}


def _by_size(
    metrics: Callable[[Tensor, Tensor], dict[str, np.ndarray]],
    images: Sequence[Tensor],
    clean: Sequence[Tensor],
) -> dict[str, np.ndarray]:
    """Return metrics of images, batched by size, which is much faster than one by one."""
    sizes: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(clean):
        sizes.setdefault(image.shape, []).append(i)
    order = np.argsort(np.concatenate(list(sizes.values())))
    by_size = [
        metrics(torch.stack([images[i] for i in index]), torch.stack([clean[i] for i in index]))
        for index in sizes.values()
    ]
    return {
        name: np.concatenate([values[name] for values in by_size])[order] for name in by_size[0]
    }
