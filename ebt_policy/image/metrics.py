"""What is restored to judge models of images, and how: held-out images, noise, and measures.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebt_policy.errors import ConfigError
from ebt_policy.image.data import ImageDataset, ImageSplit
from ebt_policy.image.datasets import NAMES, load_images
from ebt_policy.image.model import ImageModel

MOST = 200  # images, evenly spread, of a set that has more
WINDOW = 128  # pixels: the middle of an image is evaluated, as in the EBT paper


class EvalSet(NamedTuple):
    """Images to restore.

    Attributes:
        images: (C, H, W) in [-1, 1] each.
        labels: their classes.
        about: what they are.
        digest: a short hash of the images.
    """

    images: list[Tensor]
    labels: list[int]
    about: dict[str, Any]
    digest: str


@lru_cache(maxsize=1)  # entries mostly share it
def _gallery(
    name: str | None, path: str | tuple[str, ...] | None, channels: int, skip_unreadable: bool
) -> ImageDataset:
    return load_images(name, path, channels, skip_unreadable=skip_unreadable)


def tested(model: ImageModel, images: str | None, device: torch.device) -> EvalSet:
    """The middles of images that a model did not learn from, or of other ones.

    Raises:
        ImageError: there are none.
        ConfigError: none but those it learned from, or without the classes that it is to be told.
    """
    task = model.config["task"]
    path = task["path"]
    given = task["images"], tuple(path) if isinstance(path, list) else path
    if images is not None:
        given = (None, images) if Path(images).exists() else (images, None)
        if given[0] is not None and given[0] not in NAMES:
            known = ", ".join(NAMES)
            raise ConfigError(f"images={images} is neither a path nor one of {known}.")
    gallery = _gallery(*given, model.shape.channels, task["skip_unreadable"])
    if model.shape.classes not in (0, len(gallery.classes)):
        raise ConfigError(
            f"the model is told which of {model.shape.classes} classes an image has, and "
            f"{gallery.name} has {len(gallery.classes) or 'none'}; give other images=."
        )
    held_out = [part for part in ("test", "validation", "train") if part in gallery.parts]
    if given[1] is not None and images is not None:  # another folder: all of it
        part = ImageSplit()
        for one in gallery.parts.values():
            part.pixels.extend(one.pixels)
            part.labels.extend(one.labels)
        held_out = ["all"]
    else:
        part = gallery.parts[held_out[0]]
    if held_out[0] == "train":
        raise ConfigError(f"{gallery.name} has no images but those it learned from; give images=.")
    chosen = np.unique(np.linspace(0, len(part) - 1, min(MOST, len(part))).round().astype(int))
    middles = []
    for i in chosen:
        pixels = part.pixels[i]
        top, left = (max(0, (side - WINDOW) // 2) for side in pixels.shape[:2])
        middle = torch.tensor(pixels[top : top + WINDOW, left : left + WINDOW])
        middles.append(middle.permute(2, 0, 1).float() / 127.5 - 1)
    seen = hashlib.sha256(str([image.shape for image in middles]).encode())
    for image in middles:
        seen.update(image.numpy().tobytes())
    return EvalSet(
        [image.to(device) for image in middles],
        [part.labels[i] for i in chosen],
        {"images": gallery.name, "part": held_out[0], "count": len(chosen)},
        seen.hexdigest()[:16],
    )


def noisy_versions(model: ImageModel, images: Sequence[Tensor], noise: int) -> list[Tensor]:
    """The same noise for every model."""
    return [
        model.add_noise(image[None], noise, torch.Generator().manual_seed(i))[0]
        for i, image in enumerate(images)
    ]
