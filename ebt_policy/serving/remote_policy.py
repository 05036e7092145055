"""Client of a policy server, which a control loop uses like a local policy."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from ebt_policy.energy.sampling import Generators
from ebt_policy.errors import ConfigError, UserError
from ebt_policy.io.messages import MessageError, pack, unpack
from ebt_policy.policies import Chunk, ChunkConstraints, PolicyUnavailable
from ebt_policy.serving.protocol import (
    AUTHORIZATION,
    DEADLINE,
    IMAGES,
    PREFIX,
    SEED,
    STATE,
    TOKEN_VARIABLE,
    WARM_START,
    shape_of,
)

SCHEMES = ("ws://", "wss://")
RETRY_S = 0.5  # time between attempts to connect
OPEN_TIMEOUT_S = 10.0
# ValueError: the port of the address is invalid.
CONNECTION_ERRORS = (OSError, WebSocketException, UserError, ValueError)


class RemotePolicy:
    """A policy on a server (``python -m ebt_policy.serve``).

    A lost connection is restored in the background: until the same policy is served again and has
    answered the last request, `predict_chunk` raises `PolicyUnavailable`, and `is_available` is
    False. One prediction runs at a time.

    Args:
        address: ``ws://HOST:PORT``, or ``wss://`` through a proxy that encrypts. The secret of the
            server is read from the environment variable ``EBT_POLICY_TOKEN``.
        timeout_s: longest time of a prediction, s.

    Attributes:
        metadata: first message of the server, see `server_metadata`.
        server_timing: timing of the last answer, ms.

    Raises:
        ConfigError: the address is invalid, the server cannot be reached, it refuses the client, or
            it is no policy server.
    """

    supports_costs: bool = False
    device: torch.device = torch.device("cpu")

    def __init__(self, address: str, timeout_s: float) -> None:
        if not address.startswith(SCHEMES):
            raise ConfigError(
                f"policy must be an address such as ws://127.0.0.1:8000, got {address}."
            )
        self.address, self._timeout_s = address, timeout_s
        self.server_timing: dict[str, float] = {}
        self._lock = threading.Lock()  # held during a prediction and while the connection changes
        self._is_closed = False
        self._last_request = b""
        try:
            connection, self.metadata = self._connect()
        except CONNECTION_ERRORS as error:
            raise ConfigError(f"policy={address} cannot be used: {_cause(error)}.") from error
        self._connection: ClientConnection | None = connection
        self.shape = shape_of(self.metadata)
        self.name = f"{self.metadata.get('policy', 'policy')} at {address}"
        self.parameter_count = int(self.metadata.get("parameters", 0))

    @property
    def is_available(self) -> bool:
        """Whether the server is connected."""
        return self._connection is not None

    def predict_chunk(
        self,
        obs: dict[str, Tensor],
        *,
        constraints: ChunkConstraints | None = None,
        generator: Generators = None,
    ) -> Chunk:
        """Predict a chunk of actions, see `Policy.predict_chunk`.

        ``project`` is applied to the answer. The actions before the newest observation are the
        committed ones, or copies of the first action. The batch has one row.

        Raises:
            PolicyUnavailable: the server cannot be reached or does not answer.
            UserError: the server reports an error.
            ValueError: the batch has several rows, or there are costs.
        """
        constraints = constraints or ChunkConstraints()
        if len(obs["obs"]) != 1 or constraints.costs:
            raise ValueError("a policy on a server predicts for one robot, without costs.")
        assert generator is None or isinstance(generator, torch.Generator)
        message = self._message(obs, constraints, generator)
        answer = self._exchange(pack(message))
        return self._chunk(answer, constraints)

    def close(self) -> None:
        """End the connection."""
        self._is_closed = True
        if (connection := self._connection) is not None:
            self._connection = None
            connection.close()

    def _message(
        self, obs: dict[str, Tensor], constraints: ChunkConstraints, generator: Generators
    ) -> dict[str, Any]:
        message: dict[str, Any] = {STATE: obs["obs"][0].float().numpy()}
        for camera in self.shape.cameras or {}:
            message[IMAGES + camera] = obs[camera][0].numpy()
        prefix, warm_start = constraints.prefix, constraints.warm_start
        if prefix is not None and prefix.shape[1]:
            message[PREFIX] = prefix[0].float().numpy()
        if warm_start is not None:
            message[WARM_START] = warm_start[0].float().numpy()
        if isinstance(generator, torch.Generator):
            message[SEED] = int(torch.randint(2**63 - 1, (), generator=generator))
        if constraints.deadline_s is not None:
            message[DEADLINE] = constraints.deadline_s
        return message

    def _chunk(self, answer: dict[str, Any], constraints: ChunkConstraints) -> Chunk:
        shape = self.shape
        num_past = shape.n_obs_steps - 1
        actions = answer.get("actions")
        expected = (shape.horizon - num_past, shape.action_dim)
        if not isinstance(actions, np.ndarray) or actions.shape != expected:
            raise UserError(f"{self.address} did not answer with actions of the shape {expected}.")
        future = torch.from_numpy(actions.astype(np.float32))[None]
        chunk = torch.cat([future[:, :1].expand(-1, num_past, -1), future], dim=1)
        if constraints.project is not None:
            chunk = constraints.project(chunk)
        if constraints.prefix is not None:
            chunk[:, : constraints.prefix.shape[1]] = constraints.prefix.to(chunk)
        energy = answer.get("energy")
        self.server_timing = answer.get("server_timing", {})
        return Chunk(
            chunk,
            torch.tensor([int(answer.get("steps", 0))]),
            None if energy is None else torch.tensor([float(energy)]),
        )

    def _exchange(self, data: bytes) -> dict[str, Any]:
        """Send a request and return the answer."""
        late = f"{self.address} did not answer for {self._timeout_s:g} s"
        end = time.monotonic() + self._timeout_s
        # A request that the control loop gave up is finished first, so that its answer is not taken
        # for the answer to this one.
        if not self._lock.acquire(timeout=self._timeout_s):
            if (stuck := self._connection) is not None:
                _shut_down(stuck)  # The other request then fails and restores the connection.
            raise PolicyUnavailable(late)
        try:
            if (connection := self._connection) is None:
                raise PolicyUnavailable(f"{self.address} is not connected")
            self._last_request = data
            try:
                with _send_timeout(connection, end - time.monotonic()):
                    connection.send(data)
                answer = connection.recv(max(end - time.monotonic(), 0.0))
            except TimeoutError as error:
                self._restore(connection)
                raise PolicyUnavailable(late) from error
            except (ConnectionClosed, OSError) as error:
                self._restore(connection)
                lost = f"the connection to {self.address} was lost"
                raise PolicyUnavailable(late if time.monotonic() >= end else lost) from error
        finally:
            self._lock.release()
        if isinstance(answer, str):
            raise UserError(f"{self.address}: {answer}")
        return unpack(answer)

    def _connect(self) -> tuple[ClientConnection, dict[str, Any]]:
        """Return a connection, which the caller must close, and the metadata of the server."""
        token = os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"{AUTHORIZATION} {token}"} if token else None
        opening = connect(
            self.address, compression=None, additional_headers=headers, proxy=None,
            open_timeout=OPEN_TIMEOUT_S, close_timeout=self._timeout_s,
        )  # fmt: skip
        with ExitStack() as stack:
            connection = stack.enter_context(opening)
            answer = connection.recv(OPEN_TIMEOUT_S)
            if isinstance(answer, str):
                raise MessageError(f"the server answered {answer!r:.60}.")
            metadata = unpack(answer)
            shape_of(metadata)
            stack.pop_all()
            return connection, metadata

    def _restore(self, lost: ClientConnection) -> None:
        """Give up a connection, and restore it in the background; the lock is held."""
        self._connection = None
        threading.Thread(target=self._reconnect, args=(lost,), daemon=True).start()

    def _reconnect(self, lost: ClientConnection) -> None:
        lost.close()
        while not self._is_closed:
            with suppress(*CONNECTION_ERRORS), ExitStack() as stack:
                connection, metadata = self._connect()
                stack.callback(connection.close)
                if metadata == self.metadata:  # otherwise another policy is served now
                    with _send_timeout(connection, self._timeout_s):
                        connection.send(self._last_request)
                    connection.recv(self._timeout_s)
                    stack.pop_all()
                    self._connection = connection
                    return
            time.sleep(RETRY_S)


@contextmanager
def _send_timeout(connection: ClientConnection, seconds: float) -> Iterator[None]:
    """Shut a connection down if a send in this context takes longer; its `send` has no timeout."""
    timer = threading.Timer(seconds, _shut_down, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shut_down(connection: ClientConnection) -> None:
    """End the socket of a connection, so that a waiting send or receive fails."""
    with suppress(OSError):  # It may be closed already.
        connection.socket.shutdown(socket.SHUT_RDWR)


def _cause(error: Exception) -> str:
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        body = (error.response.body or b"").decode(errors="replace").strip()
        advice = f"; set {TOKEN_VARIABLE} to the token of the server" if status == 401 else ""
        return f"the server answered {status} ({body}){advice}"
    if isinstance(error, ConnectionRefusedError):
        return "no server listens there; start it with ebt-serve"
    return str(error).rstrip(".") or type(error).__name__
