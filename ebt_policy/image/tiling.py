"""Denoising of images of any size in overlapping square tiles, which are blended afterwards.

Shapes: C channels, H x W pixels, S side of a tile, N tiles, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ebt_policy.energy.sampling import Generators
from ebt_policy.image.model import DenoisingResult, ImageModel

# Tiles in a batch, by device: few enough for the cache of a CPU, or enough to use a GPU well.
TOGETHER = {"cpu": 32, "cuda": 2048}


class Tiling:
    """Positions of the tiles of an image. Images smaller than a tile are padded by reflection.

    Args:
        height, width: size of the image, pixels.
        side: S, pixels; adjacent tiles overlap by at least a quarter of it.
    """

    def __init__(self, height: int, width: int, side: int) -> None:
        overlap = side // 4
        self.size, self.side = (height, width), side
        self.full = (max(height, side), max(width, side))
        tops, lefts = (_starts(length, side, overlap) for length in self.full)
        self.places = [(top, left) for top in tops for left in lefts]

    def cut(self, image: Tensor) -> Tensor:
        """Cut an image (C, H, W) into tiles (N, C, S, S)."""
        if tuple(image.shape[1:]) != self.size:
            raise ValueError(
                f"the image must have height and width {self.size}, got {tuple(image.shape)}."
            )
        image = _continued(_continued(image, self.full[1]).mT, self.full[0]).mT
        side = self.side
        return torch.stack([image[:, y : y + side, x : x + side] for y, x in self.places])

    def join(self, tiles: Tensor) -> Tensor:
        """Join tiles (N, C, S, S) into an image (C, H, W).

        Overlapping tiles are averaged; pixels near the centre of a tile have larger weights.
        """
        side = self.side
        ramp = torch.arange(1, side + 1, device=tiles.device, dtype=tiles.dtype)
        hat = torch.minimum(ramp, ramp.flip(0))
        weight = hat * hat[:, None]
        total = tiles.new_zeros(tiles.shape[1], *self.full)
        weights = tiles.new_zeros(self.full)
        for tile, (y, x) in zip(tiles, self.places, strict=True):
            total[:, y : y + side, x : x + side] += weight * tile
            weights[y : y + side, x : x + side] += weight
        return (total / weights)[:, : self.size[0], : self.size[1]]


def denoise_tiled(
    model: ImageModel, noisy: Sequence[Tensor], noise: int, labels: Sequence[int],
    generator: Generators = None, follow: bool = True,
) -> list[DenoisingResult]:  # fmt: skip
    """Denoise images (C, H, W) of any sizes; the tiles of all images are batched.

    Args:
        noise: level of the noise.
        labels: class of each image; ignored if the model was trained without classes.
        follow: whether to keep ``path``, which is large.

    Returns:
        For each image, the result of `ImageModel.denoise` without the batch dimension: ``images``
        (C, H, W), ``energies`` (K + 1,) summed over tiles, ``steps_used`` averaged over tiles.
    """
    tilings = [Tiling(image.shape[1], image.shape[2], model.shape.side) for image in noisy]
    counts = [len(tiling.places) for tiling in tilings]
    tiles = torch.cat([tiling.cut(image) for tiling, image in zip(tilings, noisy, strict=True)])
    classes = torch.tensor(labels, device=tiles.device).repeat_interleave(
        torch.tensor(counts, device=tiles.device)
    )
    results: list[DenoisingResult] = []
    max_tiles = TOGETHER.get(tiles.device.type, TOGETHER["cpu"])
    for batch, batch_classes in zip(tiles.split(max_tiles), classes.split(max_tiles), strict=True):
        result = model.denoise(
            batch, noise, batch_classes if model.shape.classes else None, generator
        )
        results.append(result if follow else result._replace(path=[]))
    images = torch.cat([result.images for result in results]).split(counts)
    steps = zip(*(result.path for result in results), strict=True)
    paths = [torch.cat(step_tiles).split(counts) for step_tiles in steps]
    energies = [result.energies for result in results if result.energies is not None]
    sums = [e.sum(1) for e in torch.cat(energies, dim=1).split(counts, dim=1)] if energies else None
    steps_used = torch.cat([result.steps_used for result in results]).float().split(counts)
    return [
        DenoisingResult(
            tiling.join(images[i]),
            [tiling.join(x[i]) for x in paths],
            None if sums is None else sums[i],
            steps_used[i].mean(),
        )
        for i, tiling in enumerate(tilings)
    ]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Return the starts of the fewest tiles that cover a length with an overlap, evenly spaced."""
    count = math.ceil((length - side) / (side - overlap)) + 1
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _continued(image: Tensor, width: int) -> Tensor:
    """Pad an image by reflection to the right: (C, H, W) -> (C, H, width)."""
    while (current_width := image.shape[2]) < width:
        missing = width - current_width
        if current_width == 1:
            image = F.pad(image, (0, min(missing, current_width)), mode="replicate")
        else:
            image = F.pad(image, (0, min(missing, current_width - 1)), mode="reflect")
    return image
