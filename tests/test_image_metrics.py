"""Image metrics: PSNR, SSIM and mean squared error."""

import numpy as np
import pytest
import torch

from ebt_policy.evaluation.image_metrics import compute_metrics, compute_psnr


def test_metrics_agree_with_their_definitions():
    clean = torch.rand(3, 3, 16, 16) * 2 - 1
    noisy = (clean + 0.1 * torch.randn(3, 3, 16, 16)).clamp(-1, 1)
    metrics = compute_metrics(list(noisy), list(clean))
    mse = ((noisy - clean) * 127.5).square().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(metrics["mse"], mse, rtol=1e-4)
    np.testing.assert_allclose(metrics["psnr"], 10 * np.log10(255**2 / mse), rtol=1e-4)
    same = compute_metrics(list(clean), list(clean))
    assert (metrics["ssim"] < 1).all() and same["ssim"] == pytest.approx(1)


def test_metrics_of_several_image_sizes_equal_single_images():
    sizes = ((16, 16), (20, 16), (16, 16), (16, 20), (20, 16))
    clean = [torch.rand(3, *size) * 2 - 1 for size in sizes]
    noisy = [(x + 0.1 * torch.randn(x.shape)).clamp(-1, 1) for x in clean]
    metrics = compute_metrics(noisy, clean)
    single = [compute_metrics([a], [b]) for a, b in zip(noisy, clean, strict=True)]
    for name, values in metrics.items():
        np.testing.assert_allclose(values, [s[name].item() for s in single], rtol=1e-5)
    np.testing.assert_allclose(compute_psnr(noisy, clean), metrics["psnr"], rtol=1e-6)
