"""Messages in a pipe between two processes."""

from __future__ import annotations

import io

import numpy as np
import pytest

from ebt_policy.io.messages import MessageError, read_message, write_message


def test_messages_are_read_in_their_order():
    pipe = io.BytesIO()
    for count in (0, 3):
        write_message(pipe, {"rows": np.arange(count), "name": "a"})
    pipe.seek(0)
    for count in (0, 3):
        message = read_message(pipe)
        assert message is not None and message["name"] == "a"
        np.testing.assert_array_equal(message["rows"], np.arange(count))
    assert read_message(pipe) is None


@pytest.mark.parametrize("missing", [1, 3])
def test_message_that_ends_early(missing):
    pipe = io.BytesIO()
    write_message(pipe, {"name": "a"})
    with pytest.raises(MessageError, match="ended within a message"):
        read_message(io.BytesIO(pipe.getvalue()[:-missing]))
    with pytest.raises(MessageError, match="ended within a message"):
        read_message(io.BytesIO(pipe.getvalue()[:missing]))
