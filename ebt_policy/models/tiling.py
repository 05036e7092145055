"""Images of any size through a model of squares: overlapping tiles, put together smoothly.

Shapes: C channels, H x W pixels, S side of a tile, N tiles.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Tiling:
    """How an image is cut. One that is smaller than a tile is continued by its mirror image.

    Args:
        height, width: of the image.
        side: S.
        overlap: of neighbouring tiles, pixels; a quarter of S unless given.
    """

    def __init__(self, height: int, width: int, side: int, overlap: int | None = None) -> None:
        overlap = side // 4 if overlap is None else overlap
        if not 0 <= overlap < side:
            raise ValueError(f"overlap must be 0 to {side - 1}, got {overlap}.")
        self.size, self.side = (height, width), side
        self.full = (max(height, side), max(width, side))
        tops, lefts = (_starts(length, side, overlap) for length in self.full)
        self.places = [(top, left) for top in tops for left in lefts]

    def cut(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (N, C, S, S)."""
        if tuple(image.shape[1:]) != self.size:
            raise ValueError(f"the image must have {self.size} pixels, got {tuple(image.shape)}.")
        image = _continued(_continued(image, self.full[1]).mT, self.full[0]).mT
        side = self.side
        return torch.stack([image[:, y : y + side, x : x + side] for y, x in self.places])

    def join(self, tiles: Tensor) -> Tensor:
        """(N, C, S, S) -> (C, H, W); where tiles overlap, what is nearer to its middle counts
        more."""
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


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Of the fewest tiles that cover a length and overlap by as much, evenly spread."""
    count = math.ceil((length - side) / (side - overlap)) + 1
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _continued(image: Tensor, width: int) -> Tensor:
    """Mirror images to the right until a width is reached: (C, H, W) -> (C, H, width)."""
    while (have := image.shape[2]) < width:
        image = F.pad(image, (0, min(width - have, have)), mode="replicate") if have == 1 else (
            F.pad(image, (0, min(width - have, have - 1)), mode="reflect"))  # fmt: skip
    return image
