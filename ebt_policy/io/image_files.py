"""Image files of many formats as pixels, upright."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ebt_policy.errors import UserError
from ebt_policy.io.paths import reason

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
                # Pillow would cut colours of 16 bits in silence.
                is_16_bit = ";16" in str(opened.tile)
                opened.load()
                image = _upright(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{file} is huge, beyond {Image.MAX_IMAGE_PIXELS:,} pixels; cut it to pieces."
        ) from error
    except Exception as error:  # Pillow's share no base
        unknown = isinstance(error, UnidentifiedImageError)
        problem = "no format that is known" if unknown else reason(error)
        raise ImageError(f"{file} is no image that can be read ({problem}).") from error
    if is_16_bit or image.mode in ("I", "F") or ";16" in image.mode:
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
        transposition = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's share no base
        return image
    return image if transposition is None else image.transpose(transposition)
