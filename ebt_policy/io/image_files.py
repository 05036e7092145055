"""Reading of image files of several formats as upright pixels."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ebt_policy.errors import UserError
from ebt_policy.io.paths import reason

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")  # `decode` detects 16 bits per channel in these


# The transposition that makes pixels upright, by EXIF orientation.
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


def decode(data: bytes, file: str, channels: int) -> np.ndarray:
    """Return the upright pixels (H, W, C) uint8 of an image file's bytes.

    Args:
        data: content of the file.
        file: name of the file, for messages.
        channels: C, 1 for grey or 3 for RGB.

    Raises:
        ImageError: if the image cannot be read, is huge, is transparent, does not have 8 bits per
            channel, or is grey although ``channels`` is 3.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as opened:
                # Pillow would silently truncate 16-bit colours.
                is_16_bit = ";16" in str(opened.tile)
                opened.load()
                image = _upright(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{file} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; split it into smaller images."
        ) from error
    except Exception as error:  # Pillow's errors have no common base class
        unknown = isinstance(error, UnidentifiedImageError)
        problem = "its format is unknown" if unknown else reason(error)
        raise ImageError(f"{file} cannot be read as an image ({problem}).") from error
    if is_16_bit or image.mode in ("I", "F") or ";16" in image.mode:
        raise ImageError(f"{file} has more than 8 bits per channel; convert it to 8 bits.")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB"):
        raise ImageError(f"{file} has the channels {image.mode}; convert it to RGB or grey.")
    if channels == 3 and image.mode == "L":
        raise ImageError(f"{file} is grey; use images with colours, or train with task.channels=1.")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF; return it unchanged if the EXIF cannot be read.

    Pillow's own `exif_transpose` rewrites the EXIF, and fails if any entry is invalid.
    """
    try:
        transposition = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's errors have no common base class
        return image
    return image if transposition is None else image.transpose(transposition)
