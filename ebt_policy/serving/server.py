"""The policy server: websocket connections, their limits, and the answers.

The protocol is openpi's: the server sends its metadata first, then one reply to each request. An
error is a text message instead of a binary one, and the connection stays open.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import time
from collections import deque
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from ebt_policy.io.messages import MessageError, pack, unpack
from ebt_policy.serving.batching import BatchedPredictor, Prediction
from ebt_policy.serving.protocol import (
    AUTHORIZATION,
    HEALTH_PATH,
    message_limit,
    read_request,
    server_metadata,
)

MAX_QUEUED_MESSAGES = 2  # of a connection, before the server stops reading from it
LATENCIES_KEPT = 10_000  # of the latest requests, for the summary


@dataclass(frozen=True)
class ServerLimits:
    """The limits of a server.

    Attributes:
        max_clients: largest number of connections.
        max_rate_hz: largest rate of requests of a connection; faster ones wait.
    """

    max_clients: int
    max_rate_hz: float


class PolicyServer:
    """A server of one policy.

    Args:
        predictor: predictor of the policy.
        limits: see `ServerLimits`.
        token: secret that clients must send; None accepts everyone who can connect.
        report: called with one line for each event.

    Attributes:
        num_requests: number of answered requests.
        num_errors: number of requests that were answered with an error.
        latencies: seconds from the arrival of a request to its reply, of the latest requests.
    """

    def __init__(
        self,
        predictor: BatchedPredictor,
        limits: ServerLimits,
        *,
        token: str | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._predictor, self._limits, self._shape = predictor, limits, predictor.policy.shape
        self._token, self._report = token, report
        self._clients: set[ServerConnection] = set()
        self._metadata = pack(server_metadata(predictor.policy))
        self.num_requests = self.num_errors = 0
        self.latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)

    @asynccontextmanager
    async def listen(self, host: str, port: int):
        """Accept connections while the context is open; yields the port that is used."""
        server: Server = await serve(
            self._serve_client, host, port, compression=None, process_request=self._admit,
            origins=[None],  # No web page in a browser may connect.
            max_size=message_limit(self._shape), max_queue=MAX_QUEUED_MESSAGES,
        )  # fmt: skip
        work = asyncio.create_task(self._predictor.run())
        try:
            yield next(iter(server.sockets)).getsockname()[1]
        finally:
            server.close()
            await server.wait_closed()
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Return the HTTP response that refuses a new connection, or None to accept it."""
        if request.path == HEALTH_PATH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._token is not None and not _has_token(request.headers, self._token):
            self._report(f"{_address(connection)}: wrong or missing token")
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "wrong or missing token\n")
        if len(self._clients) >= self._limits.max_clients:
            self._report(f"{_address(connection)}: refused, {len(self._clients)} clients")
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    async def _serve_client(self, connection: ServerConnection) -> None:
        self._clients.add(connection)
        self._report(f"{_address(connection)}: connected, {len(self._clients)} clients")
        try:
            await self._answer_requests(connection)
        except ConnectionClosed:
            pass
        finally:
            self._clients.discard(connection)
            self._report(f"{_address(connection)}: closed, {len(self._clients)} clients")

    async def _answer_requests(self, connection: ServerConnection) -> None:
        await connection.send(self._metadata)
        last_total_s, next_at = None, 0.0
        while True:
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            data = await connection.recv()
            began = time.monotonic()
            next_at = began + 1 / self._limits.max_rate_hz
            work = asyncio.create_task(self._reply(data, last_total_s))
            closed = asyncio.create_task(connection.wait_closed())
            await asyncio.wait((work, closed), return_when=asyncio.FIRST_COMPLETED)
            closed.cancel()
            if not work.done():  # Nobody waits for the answer any more.
                work.cancel()
                return
            reply = work.result()
            await connection.send(reply)
            last_total_s = time.monotonic() - began
            self.num_requests += 1
            self.num_errors += isinstance(reply, str)
            self.latencies.append(last_total_s)

    async def _reply(self, data: bytes | str, last_total_s: float | None) -> bytes | str:
        """Return the reply to a message: binary, or the text of an error."""
        try:
            if isinstance(data, str):
                raise MessageError("a request must be a binary message in MessagePack.")
            request = read_request(unpack(data), self._shape)
            prediction = await self._predictor.predict(request)
        except MessageError as error:
            return str(error)
        except Exception as error:
            self._report(f"the policy failed ({type(error).__name__}: {error})")
            return f"the policy failed ({type(error).__name__}: {error})"
        return pack(_as_message(prediction, last_total_s))


def _as_message(prediction: Prediction, last_total_s: float | None) -> dict[str, Any]:
    timing = {"infer_ms": 1e3 * prediction.infer_s, "wait_ms": 1e3 * prediction.wait_s}
    if last_total_s is not None:
        timing["prev_total_ms"] = 1e3 * last_total_s
    energy = {} if prediction.energy is None else {"energy": prediction.energy}
    return {
        "actions": np.ascontiguousarray(prediction.actions),
        **energy,
        "steps": prediction.steps,
        "server_timing": timing,
    }


def _has_token(headers: Headers, token: str) -> bool:
    scheme, _, secret = headers.get("Authorization", "").partition(" ")
    return scheme == AUTHORIZATION and hmac.compare_digest(secret.encode(), token.encode())


def _address(connection: ServerConnection) -> str:
    host, port, *_ = connection.remote_address or ("?", "?")
    return f"{host}:{port}"
