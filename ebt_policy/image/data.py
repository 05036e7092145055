"""Images to learn from: sets by name, or the user's folders, as 8-bit pixels in memory.

Shapes: N images, H x W pixels, C channels (3, or 1 for grey), S side of a crop, B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ebt_policy.io.image_files import ImageError

STRIDE = 4  # pixels between the places of crops


@dataclass(frozen=True)
class ImageSplit:
    """Some images.

    Attributes:
        pixels: (H, W, C) uint8 each, sizes may differ.
        names: of the files, for messages.
        labels: class of each, 0 where there are none.
    """

    pixels: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, chosen: Iterable[int]) -> ImageSplit:
        """Some of them, by number."""
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
        name: for tables.
        splits: train, validation and test images, if the set has them.
        classes: their names; none where images have no labels.
        origin: where it came from and what was left out, for a line.
    """

    name: str
    splits: dict[str, ImageSplit]
    classes: tuple[str, ...]
    origin: str

    def exclude_classes(self, classes: Sequence[str]) -> ImageDataset:
        """None of some classes to learn from; the test images stay.

        Raises:
            ImageError: a class that there is not, or none is left.
        """
        if unknown := [name for name in classes if name not in self.classes]:
            available = ", ".join(self.classes) or "none"
            raise ImageError(
                f"{self.name} has no class {unknown[0]}; its classes are: {available}."
            )
        excluded = {self.classes.index(name) for name in classes}
        if len(excluded) == len(self.classes) > 0:
            raise ImageError("task.exclude_classes names every class; leave some to learn from.")
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
            f"{file} has {height} x {width} pixels, less than a crop of task.side={smallest}."
        )


# -- what is published ---------------------------------------------------------------------------


# -- one's own, and what is always there ---------------------------------------------------------


# -- batches -------------------------------------------------------------------------------------


class Crops:
    """Square crops of images, from places of a grid, each the right way round and mirrored.

    All pixels lie on the device, as bytes.

    Args:
        split: the images.
        side: S.
        max_crops: crops, evenly spread over them all; None for all.
        device: where batches are made.

    Raises:
        ImageError: an image that is smaller than a crop; names it.
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
        self.first = (sizes.prod(dim=1)).cumsum(0) - sizes.prod(dim=1)  # pixel of each image
        self.grid = (sizes - side) // STRIDE + 1  # places, down and across
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
        """The numbers (B,) of the images that crops are of."""
        return self._among_all(index)[1]

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """Rows of "image" (B, S, S, C) uint8 and "label" (B,) int64."""
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
