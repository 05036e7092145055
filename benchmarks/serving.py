"""A policy server under load: ``python -m benchmarks.serving [clients=50] [minutes=10]``.

Robots of 10 Hz that execute 8 actions of each chunk send requests to one server, which runs in
another process on the same machine. The result has the latency of their requests, from sending to
the answer, and the number of lost ones. Then a simulated Push-T robot runs episodes with the same
policy in its own process and on the server. The result is stored in
``docs/results/serving.json``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from websockets.asyncio.client import connect

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import device_name
from benchmarks.measurements.record_train_run import run_in_simulated_time
from benchmarks.results import store_json
from benchmarks.tables.control_loop import serving
from ebt_policy.evaluation.statistics import (
    mean_ci,
    paired_difference,
    percentiles,
    success_rate,
)
from ebt_policy.io.messages import pack, unpack
from ebt_policy.policies import load_policy
from ebt_policy.real_robot.episode_result import EpisodeResult
from ebt_policy.serving.remote_policy import RemotePolicy

PERIOD_S = 0.8  # eight actions at 10 Hz
TIMEOUT_S = 10.0  # An answer that takes longer is lost.
ROBOT = "sim_push_t"


@dataclass
class Load:
    """Measurements of all clients.

    Attributes:
        latencies: seconds from sending to the answer, of all requests.
        errors: number of answers that were errors.
        lost: number of requests without an answer.
    """

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    lost: int = 0


@contextmanager
def running_server(checkpoint: str) -> Iterator[str]:
    """Serve a policy in another process; yields the address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ebt_policy.serve", f"checkpoint={checkpoint}", "port=0"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        lines = (line for line in process.stdout if line.startswith("serving at "))
        yield next(lines).split()[2].rstrip(";")
    finally:
        process.send_signal(signal.SIGTERM)
        print(process.communicate()[0].splitlines()[-1])


async def run_client(address: str, number: int, end: float, load: Load) -> None:
    """Send requests like a robot until a time (monotonic seconds)."""
    generator = np.random.default_rng(number)
    due = time.monotonic() + generator.uniform(0, PERIOD_S)
    async with connect(address, compression=None, proxy=None) as connection:
        await connection.recv()
        while due < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += PERIOD_S
            state = generator.uniform(50, 450, (2, 20))
            start = time.monotonic()
            load.lost += 1  # until its answer has arrived
            with suppress(TimeoutError):
                await connection.send(pack({"observation.state": state}))
                answer = await asyncio.wait_for(connection.recv(), TIMEOUT_S)
                is_chunk = isinstance(answer, bytes) and unpack(answer)["actions"].shape == (15, 2)
                load.latencies.append(time.monotonic() - start)
                load.errors += not is_chunk
                load.lost -= 1


async def run_clients(address: str, clients: int, seconds: float) -> Load:
    """Run all clients, and return what they observed."""
    load, end = Load(), time.monotonic() + seconds
    tasks = [asyncio.create_task(run_client(address, i, end, load)) for i in range(clients)]
    pending = set(tasks)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=30)
        print(f"{len(load.latencies):,} answers, {load.lost} pending or lost", flush=True)
    for task in tasks:
        task.result()  # raises the error of a client whose connection ended
    return load


def scores(results: list[EpisodeResult]) -> dict[str, Any]:
    """Return the mean score and success of episodes, with intervals."""
    return {
        "score": mean_ci([float(r.score or 0) for r in results]),
        "success": success_rate([bool(r.success) for r in results]),
    }


def main() -> None:
    options = parse_options(checkpoint="pretrained:push_t", clients=50, minutes=10.0, episodes=50)
    torch.set_num_threads(1)
    with running_server(options.checkpoint) as address:
        load = asyncio.run(run_clients(address, options.clients, 60 * options.minutes))
        remote = RemotePolicy(address, TIMEOUT_S)
        served = run_in_simulated_time(ROBOT, remote, options.episodes)
        remote.close()
    local = run_in_simulated_time(ROBOT, load_policy(options.checkpoint), options.episodes)
    result = {
        "clients": options.clients, "minutes": options.minutes,
        "requests": len(load.latencies) + load.lost, "lost": load.lost, "errors": load.errors,
        "latency_ms": percentiles([1e3 * seconds for seconds in load.latencies]),
        "robot": {
            "episodes": options.episodes, "local": scores(local), "served": scores(served),
            "difference": paired_difference(*(
                [float(r.score or 0) for r in results] for results in (served, local)
            )),
        },
        "torch": torch.__version__, "device": device_name(), "command": command_line("serving"),
    }  # fmt: skip
    store_json("serving", result)
    print(serving(result))


if __name__ == "__main__":
    main()
