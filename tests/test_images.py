"""Image data: decoding, refused files, splits and crops."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from ebt_policy.image.data import STRIDE, Crops, ImageSplit
from ebt_policy.image.datasets import HELD_OUT, dead_leaves, load_images
from ebt_policy.io.image_files import ImageError, decode
from ebt_policy.io.local_data import local_data
from ebt_policy.io.paths import held_out_by_name


def photo(height: int = 20, width: int = 24, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return encode(Image.fromarray(pixels.squeeze()))


def test_pixels_are_unchanged_and_grey_is_converted():
    pixels = photo()
    assert np.array_equal(decode(png(pixels), "a.png", 3), pixels)
    grey = decode(png(pixels), "a.png", 1)
    want = pixels @ np.array([0.299, 0.587, 0.114])
    assert grey.shape == (20, 24, 1) and np.abs(grey[..., 0] - want).max() <= 1
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was rotated
    upright = decode(encode(turned, exif=exif), "turned.png", 3)
    assert np.array_equal(upright, np.rot90(pixels, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_unwritable_exif_is_applied(orientation):
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2)
    exif += struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif += struct.pack("<HHII", 0x010E, 12, 1, 60) + bytes(68)  # a number in a text field
    image = Image.fromarray(photo())
    good = Image.Exif()
    good[0x0112] = orientation
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(image, "PNG", exif=good))))
    assert np.array_equal(decode(encode(image, "PNG", exif=exif), "a.png", 3), np.asarray(expected))


def test_unreadable_exif_does_not_change_the_pixels(monkeypatch):
    def fail(self):
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert np.array_equal(decode(png(photo()), "a.png", 3), photo())


@pytest.mark.parametrize("error", [AttributeError, TypeError, struct.error, MemoryError, KeyError])
def test_decoder_errors_name_the_file(error, monkeypatch, tmp_path):
    path = folder(tmp_path / "mine", 3, {"bad.png": png(photo(20, 20))})
    load = PngImageFile.load

    def fail(self):
        if self.size == (20, 20):
            raise error("oops")
        return load(self)

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"bad\.png cannot be read as an image \(.*oops"):
        load_images(None, str(path), 3)
    assert "1 skipped: " in load_images(None, str(path), 3, skip_unreadable=True).origin


def png_16_bit() -> bytes:
    values = np.arange(400, dtype=np.uint16).reshape(20, 20)
    return encode(Image.fromarray(values))


def colour_png_16_bit() -> bytes:
    return cv2.imencode(".png", np.zeros((20, 20, 3), np.uint16))[1].tobytes()


BAD = {
    "no image": (lambda: b"<html>404</html>", "cannot be read as an image"),
    "empty": (lambda: b"", "cannot be read as an image"),
    "truncated": (lambda: png(photo(200, 200))[:3000], "cannot be read as an image"),
    "truncated jpeg": (
        lambda: encode(Image.fromarray(photo(200, 200)), "JPEG")[:3000],
        "cannot be read as an image",
    ),
    "16 bits": (png_16_bit, "has more than 8 bits"),
    "16 bits, colours": (colour_png_16_bit, "has more than 8 bits"),
    "transparent": (lambda: png(photo(channels=4)), "has the channels RGBA"),
    "deep, of another kind": (  # Pillow would silently truncate it to 8 bits
        lambda: cv2.imencode(".jp2", np.zeros((64, 64, 3), np.uint16))[1].tobytes(),
        "cannot be read as an image",
    ),
    "printed": (lambda: encode(Image.new("CMYK", (20, 20)), "JPEG"), "has the channels CMYK"),
    "grey": (lambda: png(photo(channels=1)), r"is grey; .* task\.channels=1"),
}


@pytest.mark.parametrize("case", BAD)
def test_unusable_images_are_named(case, tmp_path):
    make, message = BAD[case]
    with pytest.raises(ImageError, match=rf"bad\.png {message}"):
        decode(make(), "bad.png", 3)


def test_huge_images_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for height in (11, 30):  # Pillow warns about the first and refuses the second
        with pytest.raises(ImageError, match="has more than 100 pixels"):
            decode(png(photo(height, 10)), "map.png", 3)


def folder(path: Path, good: int, bad: dict[str, bytes]) -> Path:
    path.mkdir()
    for i in range(good):
        (path / f"{i:03}.png").write_bytes(png(photo(seed=i)))
    for name, data in bad.items():
        (path / name).write_bytes(data)
    return path


def test_damaged_files_are_skipped_only_with_skip_unreadable(tmp_path):
    path = folder(tmp_path / "mine", 2 * HELD_OUT, {"zz.jpg": b"junk", "notes.txt": b"no image"})
    (path / "folder.png").mkdir()  # not a file
    with pytest.raises(ImageError, match=r"zz\.jpg .* task\.skip_unreadable=true"):
        load_images(None, str(path), 3)
    gallery = load_images(None, str(path), 3, skip_unreadable=True)
    assert gallery.name == "mine" and "1 skipped: " in gallery.origin and "zz.jpg" in gallery.origin
    names = gallery.splits["train"].names + gallery.splits["validation"].names
    assert len(set(names)) == 20
    (path / "zz.jpg").unlink()
    (path / "gone.png").symlink_to(tmp_path / "nowhere")
    (path / "small.png").write_bytes(png(photo(7, 24)))
    with pytest.raises(ImageError, match=r"gone\.png cannot be read \(No such file"):
        load_images(None, str(path), 3)
    gallery = load_images(None, str(path), 3, skip_unreadable=True, smallest=8)
    assert "2 skipped: " in gallery.origin and r"small.png has 7 x 24 pixels" in gallery.origin


def test_all_damaged_files_are_listed_in_one_error(tmp_path):
    path = folder(tmp_path / "mine", 1, {f"bad{i}.png": b"" for i in range(7)})
    with pytest.raises(ImageError, match=r"bad0\.png .*bad4\.png .* And 2 more\. Repair or remove"):
        load_images(None, str(path), 3)


def test_linked_folders_are_followed(tmp_path):
    cats, path = folder(tmp_path / "cats [1]*", 3, {}), tmp_path / "mine"
    path.mkdir()
    (path / "cats").symlink_to(cats)
    (path / "cats" / "around").symlink_to(path)
    folder(path / "dogs", 4, {"dog.png": png(photo(seed=9))})
    for i in range(4):
        (path / "dogs" / f"{i:03}.png").unlink()
    gallery = load_images(None, str(path), 3)
    assert gallery.classes == ("cats", "dogs")
    assert sum(map(len, gallery.splits.values())) == 4
    (path / "birds").symlink_to(tmp_path / "unmounted")
    with pytest.raises(ImageError, match=r"mine/birds cannot be read \(No such file"):
        load_images(None, str(path), 3)


def test_folders_in_a_folder_are_classes(tmp_path):
    for i, name in enumerate(("cats", "dogs")):
        folder(tmp_path / name, HELD_OUT, {})
        for file in (tmp_path / name).iterdir():
            file.rename(file.with_name(f"{i}{file.name}"))
    gallery = load_images(None, str(tmp_path), 3)
    assert gallery.classes == ("cats", "dogs")
    for part in gallery.splits.values():
        assert all(gallery.classes[k] in n for k, n in zip(part.labels, part.names, strict=True))
    assert load_images(None, [str(tmp_path / "cats"), str(tmp_path / "dogs")], 3).classes == ()
    (tmp_path / "loose.png").write_bytes(png(photo()))
    assert load_images(None, str(tmp_path), 3).classes == ()


def test_folders_without_images_are_a_one_line_error(tmp_path):
    empty = folder(tmp_path / "empty", 0, {"notes.txt": b"no image"})
    with pytest.raises(ImageError, match=r"there is no image \(.*\) in .*empty; check task\.path"):
        load_images(None, str(empty), 3)
    with pytest.raises(ImageError, match=r"there is no image at .*absent"):
        load_images(None, str(tmp_path / "absent"), 3)
    broken = folder(tmp_path / "broken", 0, {"a.png": b"", "b.png": b"x"})
    with pytest.raises(ImageError, match=r"no image can be used: .*a\.png .*b\.png"):
        load_images(None, str(broken), 3, skip_unreadable=True)


def test_missing_or_damaged_published_sets_are_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_DATA", str(tmp_path))
    with pytest.raises(ImageError, match=r"\$EBT_POLICY_DATA/bsds500/bsds500_images\.zip"):
        load_images("bsds500", None, 3)
    with pytest.raises(ImageError, match=r"task\.images=imagenet is unknown; there are bsds500"):
        load_images("imagenet", None, 3)
    (tmp_path / "bsds500").mkdir()
    file = tmp_path / "bsds500/bsds500_images.zip"
    file.write_bytes(b"PK")
    with pytest.raises(ImageError, match=r"bsds500_images\.zip cannot be .*; download it again"):
        load_images("bsds500", None, 3)
    with ZipFile(file, "w") as zipped:
        zipped.writestr("bsds500/train/1.jpg", b"")
    with pytest.raises(ImageError, match=r"bsds500_images\.zip cannot be .*; download it again"):
        load_images("bsds500", None, 3)
    (tmp_path / "cifar10_jpeg").mkdir()
    for part in ("train", "test"):
        (tmp_path / f"cifar10_jpeg/cifar10_{part}_jpeg.npz").write_bytes(b"no archive")
    with pytest.raises(ImageError, match="download it again"):
        load_images("cifar10", None, 3)


def test_default_data_set_is_leaves(tmp_path, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_DATA", str(tmp_path))
    gallery = load_images(None, None, 3)
    assert gallery.name == "leaves" and set(gallery.splits) == {"train", "validation", "test"}
    again, other = dead_leaves("train", 3), dead_leaves("test", 3)
    assert all(map(np.array_equal, again.pixels, gallery.splits["train"].pixels))
    assert not np.array_equal(again.pixels[0], other.pixels[0])
    assert dead_leaves("test", 1).pixels[0].shape == (128, 128, 1)
    assert all(pixels.std() > 20 for pixels in again.pixels)  # covered by more than one disc


def test_published_sets_have_their_splits():
    if local_data("bsds500") is None:
        pytest.skip("needs EBT_POLICY_DATA")
    gallery = load_images("bsds500", None, 3)
    assert {name: len(part) for name, part in gallery.splits.items()} == {
        "train": 400, "validation": 32, "test": 68,
    }  # fmt: skip
    assert not set(gallery.splits["train"].names) & set(gallery.splits["test"].names)
    grey = load_images("set12", None, 1)
    assert {name: len(part) for name, part in grey.splits.items()} == {"test": 12}
    with pytest.raises(ImageError, match="is grey"):
        load_images("set12", None, 3)


@given(
    sizes=st.lists(st.tuples(st.integers(8, 21), st.integers(8, 30)), min_size=1, max_size=4),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=25, deadline=None)
def test_crops_cover_the_grid_with_mirror_images(sizes, channels):
    pixels = [photo(*size, channels, seed=i) for i, size in enumerate(sizes)]
    part = ImageSplit(pixels, [f"{i}" for i in range(len(sizes))], list(range(len(sizes))))
    crops = Crops(part, 8)
    want = [
        (crop, i)
        for i, image in enumerate(pixels)
        for top in range(0, image.shape[0] - 7, STRIDE)
        for left in range(0, image.shape[1] - 7, STRIDE)
        for crop in (image[top : top + 8, left : left + 8],) * 2
    ]
    assert len(crops) == len(want)
    batch = crops.gather(torch.arange(len(crops)))
    assert torch.equal(crops.sources(torch.arange(len(crops))), batch["label"])
    assert batch["image"].dtype == torch.uint8 and batch["label"].tolist() == [i for _, i in want]
    for k, (crop, _) in enumerate(want):
        expected = crop if k % 2 == 0 else crop[:, ::-1]
        assert np.array_equal(batch["image"][k].numpy(), expected)


def test_limited_crops_are_evenly_spread():
    part = ImageSplit([photo(24, 24), photo(24, 24, seed=1)], ["a", "b"], [0, 1])
    all_crops, limited = Crops(part, 8), Crops(part, 8, max_crops=5)
    assert len(limited) == 5 and len(Crops(part, 8, max_crops=10_000)) == len(all_crops)
    last = len(all_crops) - 1
    chosen = torch.tensor([0, last // 4, last // 2, 3 * last // 4, last])
    assert torch.equal(limited.gather(torch.arange(5))["image"], all_crops.gather(chosen)["image"])


def test_images_smaller_than_a_crop_are_named():
    part = ImageSplit([photo(24, 24), photo(7, 24)], ["a.png", "thin.png"], [0, 0])
    with pytest.raises(ImageError, match=r"thin\.png has 7 x 24 pixels, .* task\.side=8"):
        Crops(part, 8)


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_user_images_have_a_held_out_split(count, tmp_path):
    path = folder(tmp_path / "mine", count, {})
    gallery = load_images(None, [str(path), str(path / "000.png")], 3)  # one file is listed twice
    held_out = len(gallery.splits.get("validation", ImageSplit()))
    assert len(gallery.splits["train"]) + held_out == count
    assert (held_out > 0) == (count > 1) and held_out <= max(1, count // 5)


@given(st.integers(1, 30), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_every_split_has_a_file_when_there_are_enough(count, chance):
    names = ["validation", "test"]
    files = [Path(f"{n:03}.png") for n in sorted(chance.sample(range(1000), count))]
    parts = held_out_by_name(files, names)
    assert set(parts) == ({"train", *names} if count > 2 else {"train"})


@given(st.integers(101, 200), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_held_out_files_are_stable_when_files_change(count, chance):
    names = ["validation", "test"]
    files = [Path(f"{n:03}.png") for n in chance.sample(range(1000), 200)]
    parts = dict(zip(files, held_out_by_name(files, names), strict=True))
    fewer = chance.sample(files, count)  # enough files for every split
    remaining = dict(zip(fewer, held_out_by_name(fewer, names), strict=True))
    assert remaining == {file: parts[file] for file in fewer}
