"""Images of ROS 2 messages."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from ebt_policy.real_robot.errors import MessageError

CHANNEL_ORDERS = {"rgb8": "rgb", "bgr8": "bgr", "rgba8": "rgb", "bgra8": "bgr", "mono8": "gray"}


def decode_image(message: Any, topic: str) -> np.ndarray:
    """Convert an Image, whose rows may be padded, to (H, W, 3) uint8 in RGB.

    Raises:
        MessageError: the image is empty, or has another encoding or size than it says.
    """
    if message.encoding not in CHANNEL_ORDERS:
        raise MessageError(
            f"{topic}: images are {message.encoding!r}; use one of {', '.join(CHANNEL_ORDERS)}"
        )
    if not (message.width and message.height):
        raise MessageError(f"{topic}: the image is empty")
    depth = {"mono8": 1, "rgb8": 3, "bgr8": 3}.get(message.encoding, 4)
    data = np.frombuffer(message.data, dtype=np.uint8)
    if message.step < message.width * depth or len(data) != message.step * message.height:
        raise MessageError(f"{topic}: the image data does not match width, height and step")
    rows = data.reshape(message.height, message.step)[:, : message.width * depth]
    pixels = rows.reshape(message.height, message.width, depth)[..., :3]
    order = CHANNEL_ORDERS[message.encoding]
    return (
        np.repeat(pixels, 3, axis=2)
        if order == "gray"
        else pixels[..., :: 1 if order == "rgb" else -1]
    )


def decode_compressed_image(message: Any) -> np.ndarray:
    """Convert a CompressedImage (JPEG or PNG) to (H, W, 3) uint8 in RGB.

    Raises:
        MessageError: it cannot be decoded.
    """
    data = np.frombuffer(message.data, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise MessageError("a compressed image cannot be decoded")
    return image[..., ::-1]
