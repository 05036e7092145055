"""Serve a policy to robots on other machines: ``python -m ebt_policy.serve checkpoint=RUN``.

Clients are ``python -m ebt_policy.real_robot.run policy=ws://HOST:PORT`` and the package
openpi-client. See docs/how_to/serve.md.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from ebt_policy.cli import Entry, pick_device, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError, OutputError

console = Console(highlight=False, soft_wrap=True, markup=False)
WARM_UPS = 2  # The first predictions are slow.


@dataclass(frozen=True)
class ServeConfig:
    """The options of ``configs/serve.yaml``, which describes them.

    Raises:
        ConfigError: an option is invalid.
    """

    checkpoint: str | None
    host: str
    port: int
    max_batch: int
    max_clients: int
    max_rate_hz: float
    compile: bool
    device: str

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ConfigError("missing required option checkpoint=RUN.")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port must be in 0 to 65535, got {self.port}.")
        for name in ("max_batch", "max_clients"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.max_rate_hz < np.inf:
            raise ConfigError(f"max_rate_hz must be positive and finite, got {self.max_rate_hz}.")


def server_token(host: str) -> str | None:
    """Return the secret that clients must know, from the environment; None without one.

    Raises:
        ConfigError: other machines can reach the host, and there is no secret.
    """
    from ebt_policy.serving.protocol import TOKEN_VARIABLE

    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and not token.isascii():
        raise ConfigError(f"{TOKEN_VARIABLE} must have ASCII characters only.")
    if token is None and not _is_loopback(host):
        raise ConfigError(
            f"host={host} can be reached from other machines; set the environment variable "
            f"{TOKEN_VARIABLE} to a secret, here and at the clients, or use host=127.0.0.1."
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(config: dict[str, Any]) -> None:
    """Serve a policy until Ctrl-C or SIGTERM.

    Raises:
        UserError: an option is invalid, the policy cannot be read, or the port is in use.
    """
    settings = options(ServeConfig, config, "the configuration")
    token = server_token(settings.host)

    # slow to import
    from ebt_policy.policies.entries import load_single_entry
    from ebt_policy.serving.batching import BatchedPredictor
    from ebt_policy.serving.protocol import example_requests
    from ebt_policy.serving.server import PolicyServer, ServerLimits

    entry = load_single_entry(str(settings.checkpoint), pick_device(settings.device))
    policy = entry.model
    if settings.compile:
        policy.compile_prediction()
    predictor = BatchedPredictor(policy, settings.max_batch, pad=settings.compile)
    console.print(f"warming up {entry.name} on {policy.device}")
    for _ in range(WARM_UPS):
        predictor.warm_up(example_requests(policy, all_kinds=settings.compile))
    server = PolicyServer(
        predictor, ServerLimits(settings.max_clients, settings.max_rate_hz),
        token=token, report=console.print,
    )  # fmt: skip
    try:
        asyncio.run(_serve(server, settings.host, settings.port))
    except OSError as error:
        cause = error.strerror or error
        raise OutputError(
            f"host={settings.host} port={settings.port} cannot be used ({cause}); try port=0."
        ) from error
    finally:
        predictor.close()
    latency = ""
    if server.latencies:
        median, p99 = np.percentile(np.array(server.latencies) * 1e3, [50, 99])
        latency = f"; latency {median:.0f} ms (median), {p99:.0f} ms (99 %)"
    console.print(f"{server.num_requests} requests, {server.num_errors} errors{latency}")


async def _serve(server: Any, host: str, port: int) -> None:
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    # localhost would be two addresses, each with a port of its own for port=0.
    host = "127.0.0.1" if host == "localhost" else host
    async with server.listen(host, port) as used_port:
        name = f"[{host}]" if ":" in host else host
        console.print(f"serving at ws://{name}:{used_port}; press Ctrl-C to stop")
        await stopped.wait()


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "ebt-serve",
            "serve",
            "Serve a policy to robots on other machines.",
            (
                "checkpoint=pretrained:push_t",
                "checkpoint=runs/push_t/ebt-xs-seed0 device=cuda compile=true",
                "checkpoint=runs/push_t/ebt-xs-seed0 host=0.0.0.0  # needs EBT_POLICY_TOKEN",
            ),
            lambda config, _overrides: run(config),
        )
    )


if __name__ == "__main__":
    main()
