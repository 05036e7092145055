"""A policy server in a thread, for tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ebt_policy.policies import Policy
from ebt_policy.serving.batching import BatchedPredictor
from ebt_policy.serving.server import PolicyServer, ServerLimits


@contextmanager
def serving(
    policy: Policy,
    *,
    port: int = 0,
    token: str | None = None,
    max_batch: int = 8,
    max_clients: int = 16,
    max_rate_hz: float = 1e6,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[str, PolicyServer]]:
    """Serve a policy while the context is open; yields the address and the server."""
    predictor = BatchedPredictor(policy, max_batch)
    limits = ServerLimits(max_clients, max_rate_hz)
    server = PolicyServer(predictor, limits, token=token, report=report)
    started, ports = threading.Event(), []

    async def run() -> None:
        nonlocal stop
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        async with server.listen("127.0.0.1", port) as used_port:
            ports.append(used_port)
            started.set()
            await stop.wait()

    stop: asyncio.Event
    stops: list = []
    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"ws://127.0.0.1:{ports[0]}", server
    finally:
        stops[0]()
        thread.join(10)
        predictor.close()
        assert not thread.is_alive()
