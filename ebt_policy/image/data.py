"""Image data sets as 8-bit pixels in memory, and batches of crops.

Shapes: N images, H x W pixels, C channels (3, or 1 for grey), S side of a crop, B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ebt_policy.io.image_files import ImageError

STRIDE = 4  # pixels between the positions of adjacent crops


@dataclass(frozen=True)
class ImageSplit:
    """The images of a split.

    Attributes:
        pixels: (H, W, C) uint8 each; sizes may differ.
        names: names of the files, for messages.
        labels: class of each image; 0 if there are no classes.
    """

    pixels: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, chosen: Iterable[int]) -> ImageSplit:
        """Return the images with the given indices."""
        indices = list(chosen)
        return ImageSplit(
            [self.pixels[i] for i in indices],
            [self.names[i] for i in indices],
            [self.labels[i] for i in indices],
        )


@dataclass(frozen=True)
class ImageDataset:
    """A set of images.

    Attributes:
        name: name in tables.
        splits: name of a split (``train``, ``validation``, ``test``) -> its images.
        classes: names of the classes; empty if images have no labels.
        origin: where the images come from and which were skipped, for one line of output.
    """

    name: str
    splits: dict[str, ImageSplit]
    classes: tuple[str, ...]
    origin: str

    def exclude_classes(self, classes: Sequence[str]) -> ImageDataset:
        """Return the set without some classes, except in its test images, which stay.

        Raises:
            ImageError: a class is unknown, or no class is left.
        """
        if unknown := [name for name in classes if name not in self.classes]:
            available = ", ".join(self.classes) or "none"
            raise ImageError(
                f"{self.name} has no class {unknown[0]}; its classes are: {available}."
            )
        excluded = {self.classes.index(name) for name in classes}
        if len(excluded) == len(self.classes) > 0:
            raise ImageError("task.exclude_classes excludes every class; keep at least one.")
        splits = {
            name: split
            if name == "test"
            else split.select(i for i, label in enumerate(split.labels) if label not in excluded)
            for name, split in self.splits.items()
        }
        return replace(self, splits=splits)


def _check_size(pixels: np.ndarray, file: str, smallest: int) -> None:
    height, width = pixels.shape[:2]
    if min(height, width) < smallest:
        raise ImageError(
            f"{file} has {height} x {width} pixels, smaller than a crop of task.side={smallest}."
        )


class Crops:
    """Square crops of images at the positions of a grid, with a mirrored copy of each.

    All pixels are stored on the device, as bytes.

    Args:
        split: the images.
        side: S, pixels.
        max_crops: maximum number of crops, evenly spaced among all; None for all crops.
        device: device of the pixels and the batches.

    Raises:
        ImageError: an image is smaller than a crop; the message names it.
    """

    def __init__(
        self,
        split: ImageSplit,
        side: int,
        *,
        max_crops: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, pixels in zip(split.names, split.pixels, strict=True):
            _check_size(pixels, name, side)
        self.side, self.device = side, torch.device(device)
        flat = np.concatenate([pixels.reshape(-1, pixels.shape[2]) for pixels in split.pixels])
        self.pixels = torch.from_numpy(flat).to(self.device)
        self.labels = torch.tensor(split.labels)
        sizes = torch.tensor([pixels.shape[:2] for pixels in split.pixels])
        self.width = sizes[:, 1]
        self.first = (sizes.prod(dim=1)).cumsum(0) - sizes.prod(dim=1)  # first pixel of each image
        self.grid = (sizes - side) // STRIDE + 1  # number of positions, down and across
        self.ends = self.grid.prod(dim=1).cumsum(0)
        self.all = 2 * int(self.ends[-1])
        self.count = self.all if max_crops is None else min(max_crops, self.all)

    def __len__(self) -> int:
        return self.count

    def _among_all(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.count < self.all:
            index = index * (self.all - 1) // max(self.count - 1, 1)
        return index, torch.searchsorted(self.ends, index // 2, right=True)

    def sources(self, index: Tensor) -> Tensor:
        """Return the index (B,) of the image that each crop is from."""
        return self._among_all(index)[1]

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """Return the crops of some indices: "image" (B, S, S, C) uint8 and "label" (B,) int64."""
        index, image = self._among_all(index)
        place, mirrored = index // 2, index % 2 == 1
        place = place - (self.ends[image] - self.grid[image].prod(dim=1))
        across = self.grid[image, 1]
        top, left = STRIDE * (place // across), STRIDE * (place % across)
        down = torch.arange(self.side)
        right = torch.where(mirrored[:, None], down.flip(0), down)
        rows = self.first[image] + top * self.width[image]
        rows = rows[:, None] + down * self.width[image, None]
        chosen = rows[:, :, None] + (left[:, None] + right)[:, None, :]
        return {
            "image": self.pixels[chosen.to(self.device, non_blocking=True)],
            "label": self.labels[image].to(self.device, non_blocking=True),
        }
