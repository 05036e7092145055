"""Quality of pictures against the truth."""

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
    """Peak signal to noise ratio of images (N, C, H, W) in [-1, 1]: (N,), dB."""
    found: Any = peak_signal_noise_ratio(
        images, clean, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3)
    )
    return found


def measures(images: Tensor, clean: Tensor) -> dict[str, np.ndarray]:
    """Of images (N, C, H, W) in [-1, 1]: ``psnr`` in dB, ``ssim`` and ``mse`` of 8-bit values."""
    ssim: Any = structural_similarity_index_measure(images, clean, data_range=2.0, reduction="none")
    error = (images - clean).square().flatten(1).mean(1) * 127.5**2
    found = {"psnr": psnr(images, clean), "ssim": ssim, "mse": error}
    return {name: value.reshape(len(images)).cpu().numpy() for name, value in found.items()}


def psnrs(found: Sequence[Tensor], clean: Sequence[Tensor]) -> np.ndarray:
    """`psnr` of images whose sizes may differ: (N,)."""

    def of(images: Tensor, truth: Tensor) -> dict[str, np.ndarray]:
        return {"psnr": psnr(images, truth).reshape(-1).cpu().numpy()}

    return _by_size(of, found, clean)["psnr"]


def measured(found: Sequence[Tensor], clean: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """`measures` of images whose sizes may differ: (N,) each."""
    return _by_size(measures, found, clean)


def _by_size(
    of: Callable[[Tensor, Tensor], dict[str, np.ndarray]],
    found: Sequence[Tensor],
    clean: Sequence[Tensor],
) -> dict[str, np.ndarray]:
    """Images of one size together, which is many times faster than one by one."""
    sizes: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(clean):
        sizes.setdefault(image.shape, []).append(i)
    order = np.argsort(np.concatenate(list(sizes.values())))
    parts = [
        of(torch.stack([found[i] for i in index]), torch.stack([clean[i] for i in index]))
        for index in sizes.values()
    ]
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
