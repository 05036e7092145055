"""Image data sets by name, and the user's own image files.

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

HELD_OUT = 10  # One image in this many is for validation if a set has no validation split.


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
    """Load a set of images by name, or the user's own images.

    Args:
        name: ``bsds500`` (see `_bsds500`), ``cifar10``, ``set12`` (only a test split) or ``leaves``
            (made by `dead_leaves`, always available). None selects the first of these that is
            available and has a training split.
        path: image files, or folders that contain them at any depth; overrides ``name``. If all
            images of a single folder are in subfolders, the subfolders are the classes.
        channels: 3 for colour, or 1 to convert to grey.
        skip_unreadable: whether to skip unusable images and list them in ``origin``, instead of
            raising an error.
        smallest: minimum height and width of an image, pixels.

    Raises:
        ImageError: there are no images, or one cannot be used; the message names it.
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
        return ImageDataset(name, splits, (), "made by this package")
    elif name in ARCHIVES:
        archives = [local_data(*file) for file in ARCHIVES[name]]
        if None in archives:
            raise ImageError(
                f"the images {name} were not found at $EBT_POLICY_DATA/"
                f"{'/'.join(ARCHIVES[name][archives.index(None)])}; set EBT_POLICY_DATA, or use a "
                "folder of your own."
            )
        origin = f"from {archives[0]}"
        files, classes = _read_archive(
            READERS[name], [file for file in archives if file is not None]
        )
    else:
        options = ", ".join(NAMES)
        raise ImageError(f"task.images={name} is unknown; there are {options}, or set task.path.")
    splits, damaged = _decoded(files, channels, skip_unreadable, smallest)
    return ImageDataset(str(name), splits, classes, origin + format_skipped(damaged))


def _read_archive(
    reader: Callable[[list[Path]], _Listing], files: list[Path]
) -> tuple[list[_File], Any]:
    """Read the files of a published set; an error names the files."""
    try:
        entries, classes = reader(files)
        return list(entries), classes
    except Exception as error:  # The errors of the libraries have no common base class.
        named = " or ".join(map(str, files))
        raise ImageError(f"{named} cannot be read ({reason(error)}); download it again.") from error


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
    """List BSDS500 with the usual splits for denoising.

    The images of its train and test folders are for training. Of its val folder, the 68 images of
    CBSD68 are for testing and the others for validation.
    """

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
    """Make images of discs that occlude each other, like dead leaves (Matheron 1968).

    If the density of the radii r is proportional to r^-3, they have the edges and the spectrum of
    natural images (Lee, Mumford & Huang 2001, "Occlusion Models for Natural Images"). The images of
    a split are always the same.
    """
    rng = np.random.default_rng(list(LEAVES).index(split))
    side, images = LEAVES_SIDE, ImageSplit()
    for i in range(LEAVES[split]):
        image = np.zeros((side, side, 3), np.uint8)
        smallest, largest = 2.0, 64.0
        # Inverse distribution function of the density r^-3 between both radii.
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
