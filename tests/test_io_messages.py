"""MessagePack messages with arrays: what survives them, and malformed ones."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebt_policy.io.messages import MessageError, pack, unpack


@pytest.mark.parametrize(
    "array",
    [np.zeros((0, 3)), np.arange(6, dtype=">i2").reshape(2, 3), np.array(True), np.float32([1, 2])],
)
def test_arrays_survive_a_message(array):
    read = unpack(pack({"x": array, "y": array.dtype.type(1), "z": [1, "a", None]}))
    np.testing.assert_array_equal(read["x"], array)
    assert (read["x"].dtype, read["y"], read["z"]) == (array.dtype, 1, [1, "a", None])


def array_entry(**changes) -> dict:
    entry = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f8", b"shape": [1]}
    return entry | {key.encode(): value for key, value in changes.items()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid MessagePack"),
        (b"\xc1", "not valid MessagePack"),
        (b"\x91" * 2000, "not valid MessagePack"),  # nested lists
        (b"\x01", "must be a map"),
        (b"\x81\x01\x01", "not valid MessagePack"),  # an integer as a key
        (msgpack.packb({b"key": 1}), "must be a map with strings"),
        (msgpack.packb({"x": array_entry(dtype="|O")}), r"arrays of type \|O"),
        (msgpack.packb({"x": array_entry(dtype="<c16")}), "arrays of type <c16"),
        (msgpack.packb({"x": array_entry(dtype="nonsense")}), "not valid MessagePack"),
        (msgpack.packb({"x": array_entry(dtype="<f8,<f8")}), "arrays of type"),
        (msgpack.packb({"x": array_entry(shape=[2])}), "has 8 bytes"),
        (msgpack.packb({"x": array_entry(shape=[-1])}), "invalid shape"),
        (msgpack.packb({"x": array_entry(shape=[1] * 40)}), "invalid shape"),
        (msgpack.packb({"x": array_entry(shape=[2**62, 4])}), "has 8 bytes"),
        (msgpack.packb({"x": {b"__ndarray__": True}}), "not valid MessagePack"),
    ],
)
def test_a_malformed_message_is_an_error(content, words):
    with pytest.raises(MessageError, match=words):
        unpack(content)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_no_other_error(content):
    with suppress(MessageError):
        unpack(content)
