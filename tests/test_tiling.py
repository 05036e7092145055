"""Tiled denoising of images of any size."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebt_policy.image.model import build_image_model
from ebt_policy.image.tiling import TOGETHER, Tiling, denoise_tiled


@given(height=st.integers(1, 40), width=st.integers(1, 40), side=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_tiles_reassemble_the_image(height, width, side):
    tiling = Tiling(height, width, side)
    image = torch.rand(2, height, width)
    tiles = tiling.cut(image)
    assert tiles.shape == (len(tiling.places), 2, side, side)
    torch.testing.assert_close(tiling.join(tiles), image)


def test_tiles_blend_smoothly():
    """Between a tile of 0 and its neighbour of 1, the values rise without a jump."""
    tiling = Tiling(8, 14, 8)
    joined = tiling.join(torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]))
    row = joined[0, 4]
    assert row[5] == 0 and row[8] == 1 and (row.diff() >= 0).all() and row.diff().max() < 0.7


def test_batched_tiled_denoising_equals_single_images(monkeypatch):
    model = build_image_model(
        {
            "shape": {"side": 8, "channels": 3, "patch": 4, "max_noise_level": 100, "classes": 0},
            "size": {"width": 16, "heads": 2, "layers": 1},
            "model": {"name": "ebt", "inference": {}},
            "objective": {"name": "s1"},
        }
    )
    noisy = [torch.rand(3, *size) * 2 - 1 for size in ((13, 21), (8, 8), (9, 30))]
    for batch_size in (2, 100):  # batches that end within an image, and one batch
        monkeypatch.setitem(TOGETHER, "cpu", batch_size)
        results = denoise_tiled(model, noisy, 100, [0, 0, 0])
        lean = denoise_tiled(model, noisy, 100, [0, 0, 0], follow=False)
        assert [len(result.path) for result in results + lean] == [3, 3, 3, 0, 0, 0]
        for image, result in zip(noisy, results, strict=True):
            (alone,) = denoise_tiled(model, [image], 100, [0])
            assert result.images.shape == image.shape
            torch.testing.assert_close(result.images, alone.images)
            torch.testing.assert_close(result.energies, alone.energies)
            assert result.energies is not None and result.energies.shape == (3,)
            for x, y in zip(result.path, alone.path, strict=False):
                torch.testing.assert_close(x, y)
