"""Measured rates of the card, and the minimum time of a computation at these rates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.device import DEVICE, synchronize
from benchmarks.gpu.results import Case
from ebt_policy.evaluation.flops import Work

PRECISIONS = ("fp32", "tf32", "bf16")


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Set the precision of float32 matrix products: ``tf32``, or ``fp32`` for other names.

    For ``bf16``, the caller also enables autocast or uses bfloat16 tensors.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def seconds_of(job: Callable[[], Any], rounds: int, warm_up: int = 3) -> list[float]:
    """Return the wall-clock seconds of each round of a job, including the work of the device."""
    for _ in range(warm_up):
        job()
    times = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        job()
        synchronize()
        times.append(time.perf_counter() - start)
    return times


def ceilings(toy: bool) -> list[Case]:
    """Return one case for each rate: matrix products by precision, memory copy, kernel launch."""
    side, megabytes, rounds = (128, 4, 3) if toy else (8192, 2048, 10)

    def product(name: str) -> dict[str, Any]:
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
        with precision(name):
            median = statistics.median(seconds_of(lambda: a @ b, rounds))
        return {"teraflops": 2 * side**3 / median / 1e12}

    def copy() -> dict[str, Any]:
        source = torch.randn(megabytes * 2**18, device=DEVICE)  # float32
        target = torch.empty_like(source)
        median = statistics.median(seconds_of(lambda: target.copy_(source), rounds))
        return {"gigabytes_per_second": 2 * megabytes * 2**20 / median / 1e9}

    def launch() -> dict[str, Any]:
        x, num_launches = torch.zeros(1, device=DEVICE), 1000

        def launches() -> None:
            for _ in range(num_launches):
                x.add_(1.0)

        return {
            "microseconds": statistics.median(seconds_of(launches, rounds)) / num_launches * 1e6
        }

    products = [
        Case(f"matrix product, {name}", lambda name=name: product(name), 20) for name in PRECISIONS
    ]
    return [*products, Case("copy", copy, 10), Case("launch", launch, 10)]


def floor_seconds(work: Work, rates: dict[str, dict[str, Any]], name: str) -> float:
    """Return the minimum time of some work at the card's measured rates, in seconds.

    It is the larger one of the times for the operations and for the bytes (a roofline).

    Args:
        work: operations and bytes of the matrix products.
        rates: results of `ceilings`.
        name: precision of the products.
    """
    operations = work.flops / (1e12 * rates[f"matrix product, {name}"]["teraflops"])
    return max(operations, work.bytes / (1e9 * rates["copy"]["gigabytes_per_second"]))
