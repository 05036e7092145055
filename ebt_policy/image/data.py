"""Images to learn from: sets by name, or the user's folders, as 8-bit pixels in memory.

Shapes: N images, H x W pixels, C channels (3, or 1 for grey), S side of a crop, B batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from ebt_policy.errors import UserError
from ebt_policy.io.local_data import local_data
from ebt_policy.io.paths import MEND, held_out_by_name, left_out, listed, own_files, reason

HELD_OUT = 10  # one image of so many validates, in a set without a part for it
STRIDE = 4  # pixels between the places of crops
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")  # of which 16 bits a channel are noticed
# What turns pixels the right way up, by EXIF's orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError, ValueError):
    """Images that are missing or cannot be used."""


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

    def only(self, chosen: Iterable[int]) -> ImageSplit:
        """Some of them, by number."""
        kept = list(chosen)
        return ImageSplit(
            [self.pixels[i] for i in kept],
            [self.names[i] for i in kept],
            [self.labels[i] for i in kept],
        )


@dataclass(frozen=True)
class ImageDataset:
    """A set of images.

    Attributes:
        name: for tables.
        parts: train, validation and test, as far as there are any.
        classes: their names; none where images have no labels.
        origin: where it came from and what was left out, for a line.
    """

    name: str
    parts: dict[str, ImageSplit]
    classes: tuple[str, ...]
    origin: str

    def without(self, classes: Sequence[str]) -> ImageDataset:
        """None of some classes to learn from; the test images stay.

        Raises:
            ImageError: a class that there is not, or none is left.
        """
        if unknown := [name for name in classes if name not in self.classes]:
            known = ", ".join(self.classes) or "none"
            raise ImageError(f"{self.name} has no class {unknown[0]}; its classes are: {known}.")
        out = {self.classes.index(name) for name in classes}
        if len(out) == len(self.classes) > 0:
            raise ImageError("task.leave_out names every class; leave some to learn from.")
        parts = {
            name: part
            if name == "test"
            else part.only(i for i, label in enumerate(part.labels) if label not in out)
            for name, part in self.parts.items()
        }
        return replace(self, parts=parts)


class _File(NamedTuple):
    part: str
    name: str
    data: bytes | Path
    label: int = 0


_Read = tuple[Iterable[_File], tuple[str, ...]]  # files, and the names of their classes


def load_images(
    name: str | None, path: str | Sequence[str] | None, channels: int, *,
    skip_damaged: bool = False, smallest: int = 1,
) -> ImageDataset:  # fmt: skip
    """A set of images by name, or the user's own.

    Args:
        name: ``bsds500`` (train and test to learn from, CBSD68 to test on), ``cifar10``, ``set12``
            (to test on), ``leaves`` (made by `dead_leaves`, always there), or None: the first of
            these that can be learned from.
        path: image files, or folders in which they are looked for. Folders in a single one are
            the classes of what they hold, where they hold all.
        channels: 3, or 1: colours then become grey.
        skip_damaged: leave out what cannot be used, and say so, instead of an error.
        smallest: pixels that an image must have each way.

    Raises:
        ImageError: there are none, or one cannot be used; names it.
    """
    if name is None and path is None:
        learned = (known for known in ("bsds500", "cifar10") if local_data(*ARCHIVES[known][0]))
        name = next(learned, "leaves")
    classes: tuple[str, ...] = ()
    if path is not None:
        files, classes = _own([path] if isinstance(path, str) else list(path))
        origin = f"from {len(files)} files"
        name = Path(path if isinstance(path, str) else path[0]).stem
    elif name == "leaves":
        parts = {part: dead_leaves(part, channels) for part in LEAVES}
        return ImageDataset(name, parts, (), "made for it")
    elif name in ARCHIVES:
        found = [local_data(*file) for file in ARCHIVES[name]]
        if None in found:
            raise ImageError(
                f"the images {name} are looked for at $EBT_POLICY_DATA/"
                f"{'/'.join(ARCHIVES[name][found.index(None)])}, and are not there; set the "
                "variable, or use a folder of your own."
            )
        origin = f"from {found[0]}"
        files, classes = _whole(READERS[name], [file for file in found if file is not None])
    else:
        known = ", ".join(NAMES)
        raise ImageError(f"task.images={name} is unknown; there are {known}, or use task.path.")
    parts, damaged = _decoded(files, channels, skip_damaged, smallest)
    return ImageDataset(str(name), parts, classes, origin + left_out(damaged))


def _whole(read: Callable[[list[Path]], _Read], files: list[Path]) -> tuple[list[_File], Any]:
    """What a reader of a published set finds."""
    try:
        found, classes = read(files)
        return list(found), classes
    except Exception as error:  # the libraries' own errors share no base
        named = " or ".join(map(str, files))
        raise ImageError(f"{named} cannot be read ({reason(error)}); fetch it again.") from error


def _decoded(
    files: Iterable[_File], channels: int, skip_damaged: bool, smallest: int
) -> tuple[dict[str, ImageSplit], list[str]]:
    parts: dict[str, ImageSplit] = {}
    damaged = []
    for file in files:
        try:
            pixels = decode(_contents(file), file.name, channels)
            _check_size(pixels, file.name, smallest)
        except ImageError as error:
            damaged.append(str(error))
            continue
        part = parts.setdefault(file.part, ImageSplit())
        part.pixels.append(pixels)
        part.names.append(file.name)
        part.labels.append(file.label)
    if damaged and not skip_damaged:
        raise ImageError(f"{listed(damaged)} {MEND}")
    if not parts:
        raise ImageError(f"no image can be used: {listed(damaged)}")
    return parts, damaged


def _contents(file: _File) -> bytes:
    if isinstance(file.data, bytes):
        return file.data
    try:
        return file.data.read_bytes()
    except OSError as error:
        raise ImageError(f"{file.name} cannot be read ({error.strerror or error}).") from error


def _check_size(pixels: np.ndarray, file: str, smallest: int) -> None:
    height, width = pixels.shape[:2]
    if min(height, width) < smallest:
        raise ImageError(
            f"{file} has {height} x {width} pixels, less than a crop of task.side={smallest}."
        )


def decode(data: bytes, file: str, channels: int) -> np.ndarray:
    """The pixels (H, W, C) uint8 of an image file's bytes, the right way up.

    Raises:
        ImageError: no image, a damaged or a huge one, not 8 bits a channel, transparent, or grey
            where colours are asked for.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as opened:
                deep = ";16" in str(opened.tile)  # Pillow would cut colours of 16 bits in silence
                opened.load()
                image = _upright(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{file} is huge, beyond {Image.MAX_IMAGE_PIXELS:,} pixels; cut it to pieces."
        ) from error
    except Exception as error:  # Pillow's share no base
        unknown = isinstance(error, UnidentifiedImageError)
        shown = "no format that is known" if unknown else reason(error)
        raise ImageError(f"{file} is no image that can be read ({shown}).") from error
    if deep or image.mode in ("I", "F") or ";16" in image.mode:
        raise ImageError(f"{file} has more than 8 bits a channel; convert it to 8.")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB"):
        raise ImageError(f"{file} has the channels {image.mode}; convert it to RGB or grey.")
    if channels == 3 and image.mode == "L":
        raise ImageError(
            f"{file} is grey; give images with colours, or train with task.channels=1."
        )
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says; where that cannot be understood, it stays as it is.

    Pillow's own `exif_transpose` writes the EXIF anew, and fails at any entry that is not as it
    should be.
    """
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's share no base
        return image
    return image if turn is None else image.transpose(turn)


# -- what is published ---------------------------------------------------------------------------

ARCHIVES: dict[str, tuple[tuple[str, ...], ...]] = {
    "bsds500": (("bsds500", "bsds500_images.zip"),),
    "cifar10": (
        ("cifar10_jpeg", "cifar10_train_jpeg.npz"),
        ("cifar10_jpeg", "cifar10_test_jpeg.npz"),
    ),
    "set12": (("denoise_test", "set12.zip"),),
}


def _bsds500(files: list[Path]) -> _Read:
    """As is usual: learned from train and test, tested on CBSD68, which is a part of val."""

    def read() -> Iterator[_File]:
        with ZipFile(files[0]) as zipped:
            listed = zipped.read("bsds500/cbsd68_names.txt").decode().split()
            tested = {Path(name).stem for name in listed}
            for member in sorted(zipped.namelist()):
                place = Path(member)
                if place.suffix == ".jpg":
                    part = "train"
                    if place.parent.name == "val":
                        part = "test" if place.stem in tested else "validation"
                    yield _File(part, place.name, zipped.read(member))

    return read(), ()


def _cifar10(files: list[Path]) -> _Read:
    with np.load(files[0]) as stored:
        classes = tuple(map(str, stored["class_names"]))

    def read() -> Iterator[_File]:
        for part, file in zip(("train", "test"), files, strict=True):
            with np.load(file) as stored:
                data, ends = stored["jpeg"].tobytes(), stored["offsets"].tolist()
                labels = stored["labels"].tolist()
            for i, label in enumerate(labels):
                held_out = part == "train" and i % HELD_OUT == 0
                name = f"{part}/{i}"
                yield _File(
                    "validation" if held_out else part, name, data[ends[i] : ends[i + 1]], label
                )

    return read(), classes


def _set12(files: list[Path]) -> _Read:
    def read() -> Iterator[_File]:
        with ZipFile(files[0]) as zipped:
            for member in sorted(zipped.namelist()):
                if member.endswith(".png"):
                    yield _File("test", Path(member).name, zipped.read(member))

    return read(), ()


READERS = {"bsds500": _bsds500, "cifar10": _cifar10, "set12": _set12}
NAMES = (*READERS, "leaves")


# -- one's own, and what is always there ---------------------------------------------------------


def _own(paths: Sequence[str]) -> tuple[list[_File], tuple[str, ...]]:
    files = own_files(paths, SUFFIXES, "image", ImageError)
    below = [file.relative_to(paths[0]).parts[:-1] for file in files] if len(paths) == 1 else []
    classes = tuple(sorted({place[0] for place in below})) if below and all(below) else ()
    labels = [classes.index(place[0]) for place in below] if classes else [0] * len(files)
    parts = held_out_by_name(files, ["validation"])
    found = zip(parts, files, labels, strict=True)
    return [_File(part, str(file), file, label) for part, file, label in found], classes


LEAVES = {"train": 64, "validation": 8, "test": 16}  # images of each part
LEAVES_SIDE = 128


def dead_leaves(part: str, channels: int) -> ImageSplit:
    """Images that need no data: discs that hide each other, as dead leaves do (Matheron 1968).

    With radii r drawn as r^-3 they have the edges and the spectrum of natural images (Lee, Mumford
    & Huang 2001, "Occlusion Models for Natural Images"). Always the same.
    """
    rng = np.random.default_rng(list(LEAVES).index(part))
    side, made = LEAVES_SIDE, ImageSplit()
    for i in range(LEAVES[part]):
        image = np.zeros((side, side, 3), np.uint8)
        smallest, largest = 2.0, 64.0
        # The inverse of r^-3's distribution function between the two.
        share = rng.random(3000) * (1 - (smallest / largest) ** 2)
        radii = smallest / np.sqrt(1 - share)
        places = rng.integers(-20, side + 20, (len(radii), 2))
        colours = rng.integers(0, 256, (len(radii), 3))
        for place, radius, colour in zip(places, radii, colours, strict=True):
            cv2.circle(image, place.tolist(), round(radius), colour.tolist(), -1, cv2.LINE_AA)
        if channels == 1:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        made.pixels.append(image)
        made.names.append(f"leaves {part} {i}")
        made.labels.append(0)
    return made


# -- batches -------------------------------------------------------------------------------------


class Crops:
    """Square crops of images, from places of a grid, each the right way round and mirrored.

    All pixels lie on the device, as bytes.

    Args:
        part: the images.
        side: S.
        most: crops, evenly spread over them all; None for all.
        device: where batches are made.

    Raises:
        ImageError: an image that is smaller than a crop; names it.
    """

    def __init__(
        self,
        part: ImageSplit,
        side: int,
        *,
        most: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, pixels in zip(part.names, part.pixels, strict=True):
            _check_size(pixels, name, side)
        self.side, self.device = side, torch.device(device)
        flat = np.concatenate([pixels.reshape(-1, pixels.shape[2]) for pixels in part.pixels])
        self.pixels = torch.from_numpy(flat).to(self.device)
        self.labels = torch.tensor(part.labels)
        sizes = torch.tensor([pixels.shape[:2] for pixels in part.pixels])
        self.width = sizes[:, 1]
        self.first = (sizes.prod(dim=1)).cumsum(0) - sizes.prod(dim=1)  # pixel of each image
        self.grid = (sizes - side) // STRIDE + 1  # places, down and across
        self.ends = self.grid.prod(dim=1).cumsum(0)
        self.all = 2 * int(self.ends[-1])
        self.count = self.all if most is None else min(most, self.all)

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
