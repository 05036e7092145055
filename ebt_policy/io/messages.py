"""Messages between processes: MessagePack with NumPy arrays, as in openpi.

An array is a map with the binary keys ``__ndarray__``, ``data``, ``dtype`` and ``shape``, and a
NumPy scalar a map with ``__npgeneric__``, ``data`` and ``dtype``. This is the format of the module
``msgpack_numpy`` of the package openpi-client (https://github.com/Physical-Intelligence/openpi).
Nothing is unpickled.
"""

from __future__ import annotations

import math
from typing import IO, Any

import msgpack
import numpy as np

from ebt_policy.errors import UserError

ARRAY_KINDS = "biuf"  # boolean, integer and floating-point numbers
MAX_DIMENSIONS = 8


class MessageError(UserError, ValueError):
    """A message that cannot be read."""


def pack(message: dict[str, Any]) -> bytes:
    """Encode a message of numbers, strings, lists, maps and arrays.

    >>> unpack(pack({"actions": np.arange(3.0)}))["actions"].tolist()
    [0.0, 1.0, 2.0]
    """
    data = msgpack.packb(message, default=_encode)
    assert data is not None
    return data


def unpack(data: bytes) -> dict[str, Any]:
    """Decode a message; its arrays are read-only.

    Raises:
        MessageError: the data is not a map in this format.
    """
    try:
        message = msgpack.unpackb(data, object_hook=_decode)
    except MessageError:
        raise
    except Exception as error:  # msgpack raises many kinds, and so do malformed arrays
        cause = f"{type(error).__name__}: {error}"
        raise MessageError(f"the message is not valid MessagePack ({cause}).") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise MessageError(
            f"a message must be a map with strings as keys, got {type(message).__name__}."
        )
    return message


def write_message(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write a message after its length (4 bytes, big-endian) to the pipe of another process."""
    data = pack(message)
    stream.write(len(data).to_bytes(4) + data)
    stream.flush()


def read_message(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read a message of `write_message`; None at the end of the stream.

    Raises:
        MessageError: the stream ends within a message, or the message cannot be read.
    """
    length = stream.read(4)
    if not length:
        return None
    data = stream.read(size := int.from_bytes(length))
    if len(length) < 4 or len(data) < size:
        raise MessageError("the other process ended within a message.")
    return unpack(data)


def _encode(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    if isinstance(value, np.ndarray) and value.dtype.kind in ARRAY_KINDS:
        return {
            b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str,
            b"shape": value.shape,
        }  # fmt: skip
    raise TypeError(f"a message cannot contain {type(value).__name__}.")


def _decode(entry: dict[Any, Any]) -> Any:
    if b"__ndarray__" in entry:
        return _decode_array(entry[b"data"], _dtype(entry[b"dtype"]), entry[b"shape"])
    if b"__npgeneric__" in entry:
        return _dtype(entry[b"dtype"]).type(entry[b"data"])
    return entry


def _decode_array(data: bytes, dtype: np.dtype, shape: list[int]) -> np.ndarray:
    if len(shape) > MAX_DIMENSIONS or any(not isinstance(n, int) or n < 0 for n in shape):
        raise MessageError(f"an array has the invalid shape {shape}.")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise MessageError(
            f"an array of shape {tuple(shape)} and type {dtype} has {len(data)} bytes."
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(name: str) -> np.dtype:
    dtype = np.dtype(name)
    if dtype.kind not in ARRAY_KINDS:
        raise MessageError(f"arrays of type {name} are not supported; use numbers.")
    return dtype
