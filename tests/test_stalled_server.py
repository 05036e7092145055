"""A policy server that stops reading its connections, for example because it is suspended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from websockets.sync.server import ServerConnection, serve

from ebt_policy.io.messages import pack
from ebt_policy.policies import PolicyUnavailable
from ebt_policy.serving import remote_policy
from ebt_policy.serving.remote_policy import RemotePolicy

TIMEOUT_S = 60.0  # seconds to wait for an expected event; long, as a busy machine is slow
SHAPE = {
    "obs_dim": 2, "action_dim": 2, "horizon": 16, "n_obs_steps": 2, "n_action_steps": 8,
    "cameras": {"front": [720, 1280]}, "relative_to": None, "max_prefix_len": 0,
}  # fmt: skip
# The frames are larger than the buffers of a socket.
FRAMES = torch.zeros(1, 2, 720, 1280, 3, dtype=torch.uint8)
OBSERVATION = {"obs": torch.zeros(1, 2, 2), "front": FRAMES.repeat(1, 4, 1, 1, 1)}


@contextmanager
def stalled_server() -> Iterator[tuple[str, threading.Event]]:
    """Yield the address of a server and an event; before it is set, no request is read."""
    resumed = threading.Event()

    def answer(connection: ServerConnection) -> None:
        connection.send(pack({"policy": "bc", "shape": SHAPE}))
        with connection.protocol_mutex:  # The thread that reads the socket needs it.
            resumed.wait(TIMEOUT_S)
        for _ in connection:
            connection.send(pack({"actions": np.zeros((15, 2), np.float32), "steps": 1}))

    with serve(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", resumed
        finally:
            resumed.set()
            server.shutdown()
            thread.join(TIMEOUT_S)


def test_a_server_that_does_not_read_is_unavailable_until_it_does(monkeypatch):
    monkeypatch.setattr(remote_policy, "RETRY_S", 0.05)
    with stalled_server() as (address, resumed):
        remote = RemotePolicy(address, 0.3)
        errors: list[Exception] = []

        def predict() -> None:
            try:
                remote.predict_chunk(OBSERVATION)
            except PolicyUnavailable as error:
                errors.append(error)

        request = threading.Thread(target=predict, daemon=True)
        start = time.monotonic()
        request.start()
        request.join(10)
        assert not request.is_alive() and time.monotonic() - start >= 0.3
        assert str(errors[0]) == f"{address} did not answer for 0.3 s"
        assert not remote.is_available
        with pytest.raises(PolicyUnavailable, match="is not connected"):
            remote.predict_chunk(OBSERVATION)
        remote._timeout_s = TIMEOUT_S
        resumed.set()
        end = time.monotonic() + TIMEOUT_S
        while not remote.is_available:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert remote.predict_chunk(OBSERVATION).actions.shape == (1, 16, 2)
        remote.close()


def test_a_request_that_waits_for_a_stuck_one_ends_the_connection():
    with stalled_server() as (address, _):
        remote = RemotePolicy(address, TIMEOUT_S)
        first = threading.Thread(target=predict_until_unavailable, args=[remote], daemon=True)
        first.start()
        end = time.monotonic() + TIMEOUT_S
        while not remote._lock.locked():
            assert time.monotonic() < end
        remote._timeout_s = 0.2
        with pytest.raises(PolicyUnavailable, match=r"did not answer for 0\.2 s"):
            remote.predict_chunk(OBSERVATION)
        first.join(TIMEOUT_S)
        assert not first.is_alive() and not remote.is_available
        remote.close()


def predict_until_unavailable(remote: RemotePolicy) -> None:
    with pytest.raises(PolicyUnavailable):
        remote.predict_chunk(OBSERVATION)
