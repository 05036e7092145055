"""Named sets of images, and the user's own files.

Shapes: N images, H x W pixels, C channels (3, or 1 for grey)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import cv2
import numpy as np

from ebt_policy.image.data import ImageDataset, ImageSplit, _check_size
from ebt_policy.io.image_files import ImageError, decode
from ebt_policy.io.local_data import local_data
from ebt_policy.io.paths import (
    SKIP_HINT,
    find_files,
    format_skipped,
    held_out_by_name,
    listed,
    reason,
)

HELD_OUT = 10  # one image in `HELD_OUT` validates if a set has no validation split


SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


class _File(NamedTuple):
    split: str
    name: str
    data: bytes | Path
    label: int = 0


_Listing = tuple[Iterable[_File], tuple[str, ...]]  # files, and the names of their classes


def load_images(
    name: str | None, path: str | Sequence[str] | None, channels: int, *,
    skip_unreadable: bool = False, smallest: int = 1,
) -> ImageDataset:  # fmt: skip
    """A set of images by name, or the user's own.

    Args:
        name: ``bsds500`` (train and test to learn from, CBSD68 to test on), ``cifar10``, ``set12``
            (to test on), ``leaves`` (made by `dead_leaves`, always there), or None: the first of
            these that can be learned from.
        path: image files, or folders in which they are looked for. Folders in a single one are
            the classes of what they hold, where they hold all.
        channels: 3, or 1: colours then become grey.
        skip_unreadable: leave out what cannot be used, and say so, instead of an error.
        smallest: pixels that an image must have each way.

    Raises:
        ImageError: there are none, or one cannot be used; names it.
    """
    if name is None and path is None:
        available = (key for key in ("bsds500", "cifar10") if local_data(*ARCHIVES[key][0]))
        name = next(available, "leaves")
    classes: tuple[str, ...] = ()
    if path is not None:
        files, classes = _user_files([path] if isinstance(path, str) else list(path))
        origin = f"from {len(files)} files"
        name = Path(path if isinstance(path, str) else path[0]).stem
    elif name == "leaves":
        splits = {split: dead_leaves(split, channels) for split in LEAVES}
        return ImageDataset(name, splits, (), "made for it")
    elif name in ARCHIVES:
        archives = [local_data(*file) for file in ARCHIVES[name]]
        if None in archives:
            raise ImageError(
                f"the images {name} are looked for at $EBT_POLICY_DATA/"
                f"{'/'.join(ARCHIVES[name][archives.index(None)])}, and are not there; set the "
                "variable, or use a folder of your own."
            )
        origin = f"from {archives[0]}"
        files, classes = _read_archive(
            READERS[name], [file for file in archives if file is not None]
        )
    else:
        options = ", ".join(NAMES)
        raise ImageError(f"task.images={name} is unknown; there are {options}, or use task.path.")
    splits, damaged = _decoded(files, channels, skip_unreadable, smallest)
    return ImageDataset(str(name), splits, classes, origin + format_skipped(damaged))


def _read_archive(
    reader: Callable[[list[Path]], _Listing], files: list[Path]
) -> tuple[list[_File], Any]:
    """Read a published set; an error names its files."""
    try:
        entries, classes = reader(files)
        return list(entries), classes
    except Exception as error:  # the libraries' own errors share no base
        named = " or ".join(map(str, files))
        raise ImageError(f"{named} cannot be read ({reason(error)}); fetch it again.") from error


def _decoded(
    files: Iterable[_File], channels: int, skip_unreadable: bool, smallest: int
) -> tuple[dict[str, ImageSplit], list[str]]:
    splits: dict[str, ImageSplit] = {}
    damaged = []
    for file in files:
        try:
            pixels = decode(_contents(file), file.name, channels)
            _check_size(pixels, file.name, smallest)
        except ImageError as error:
            damaged.append(str(error))
            continue
        split = splits.setdefault(file.split, ImageSplit())
        split.pixels.append(pixels)
        split.names.append(file.name)
        split.labels.append(file.label)
    if damaged and not skip_unreadable:
        raise ImageError(f"{listed(damaged)} {SKIP_HINT}")
    if not splits:
        raise ImageError(f"no image can be used: {listed(damaged)}")
    return splits, damaged


def _contents(file: _File) -> bytes:
    if isinstance(file.data, bytes):
        return file.data
    try:
        return file.data.read_bytes()
    except OSError as error:
        raise ImageError(f"{file.name} cannot be read ({error.strerror or error}).") from error


ARCHIVES: dict[str, tuple[tuple[str, ...], ...]] = {
    "bsds500": (("bsds500", "bsds500_images.zip"),),
    "cifar10": (
        ("cifar10_jpeg", "cifar10_train_jpeg.npz"),
        ("cifar10_jpeg", "cifar10_test_jpeg.npz"),
    ),
    "set12": (("denoise_test", "set12.zip"),),
}


def _bsds500(files: list[Path]) -> _Listing:
    """List BSDS500 in its usual splits: its train and test to train on, CBSD68 of val to test."""

    def list_files() -> Iterator[_File]:
        with ZipFile(files[0]) as zipped:
            names = zipped.read("bsds500/cbsd68_names.txt").decode().split()
            test_names = {Path(name).stem for name in names}
            for member in sorted(zipped.namelist()):
                member_path = Path(member)
                if member_path.suffix == ".jpg":
                    split = "train"
                    if member_path.parent.name == "val":
                        split = "test" if member_path.stem in test_names else "validation"
                    yield _File(split, member_path.name, zipped.read(member))

    return list_files(), ()


def _cifar10(files: list[Path]) -> _Listing:
    with np.load(files[0]) as stored:
        classes = tuple(map(str, stored["class_names"]))

    def list_files() -> Iterator[_File]:
        for split, file in zip(("train", "test"), files, strict=True):
            with np.load(file) as stored:
                data, ends = stored["jpeg"].tobytes(), stored["offsets"].tolist()
                labels = stored["labels"].tolist()
            for i, label in enumerate(labels):
                held_out = split == "train" and i % HELD_OUT == 0
                name = f"{split}/{i}"
                yield _File(
                    "validation" if held_out else split, name, data[ends[i] : ends[i + 1]], label
                )

    return list_files(), classes


def _set12(files: list[Path]) -> _Listing:
    def list_files() -> Iterator[_File]:
        with ZipFile(files[0]) as zipped:
            for member in sorted(zipped.namelist()):
                if member.endswith(".png"):
                    yield _File("test", Path(member).name, zipped.read(member))

    return list_files(), ()


READERS = {"bsds500": _bsds500, "cifar10": _cifar10, "set12": _set12}


NAMES = (*READERS, "leaves")


def _user_files(paths: Sequence[str]) -> tuple[list[_File], tuple[str, ...]]:
    files = find_files(paths, SUFFIXES, "image", ImageError)
    below = [file.relative_to(paths[0]).parts[:-1] for file in files] if len(paths) == 1 else []
    classes = tuple(sorted({folders[0] for folders in below})) if below and all(below) else ()
    labels = [classes.index(folders[0]) for folders in below] if classes else [0] * len(files)
    splits = held_out_by_name(files, ["validation"])
    rows = zip(splits, files, labels, strict=True)
    return [_File(split, str(file), file, label) for split, file, label in rows], classes


LEAVES = {"train": 64, "validation": 8, "test": 16}  # images of each split


LEAVES_SIDE = 128


def dead_leaves(split: str, channels: int) -> ImageSplit:
    """Images that need no data: discs that hide each other, as dead leaves do (Matheron 1968).

    With radii r drawn as r^-3 they have the edges and the spectrum of natural images (Lee, Mumford
    & Huang 2001, "Occlusion Models for Natural Images"). Always the same.
    """
    rng = np.random.default_rng(list(LEAVES).index(split))
    side, images = LEAVES_SIDE, ImageSplit()
    for i in range(LEAVES[split]):
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
        images.pixels.append(image)
        images.names.append(f"leaves {split} {i}")
        images.labels.append(0)
    return images
