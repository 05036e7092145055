"""Training of policies with two cameras, and denoising of images."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from benchmarks import image_speed
from benchmarks.device import DEVICE
from benchmarks.gpu.card import floor_seconds, seconds_of
from benchmarks.gpu.results import Case
from benchmarks.gpu.training import MODELS, random_windows, speed_of
from benchmarks.speed import SHAPE, make
from ebt_policy.evaluation.flops import count_work

CAMERAS, SIDE = ("front", "wrist"), 96
PRECISIONS = ("bf16", "tf32")


def cases(rates: dict[str, dict[str, Any]], toy: bool) -> list[Case]:
    """Return the cases, the most important first."""
    batches, vision = ((4,), "small") if toy else ((64, 256), "resnet18")
    size, noisy = ("4xs", 2) if toy else ("m", 32)
    seeing = [
        Case(
            f"{vision}, {len(CAMERAS)} cameras, batch {batch}, {kind}, {name}",
            partial(measure_policy, MODELS[name], size, vision, batch, kind, rates, toy),
            120,
        )
        for batch in batches
        for kind in PRECISIONS
        for name in ("energy", "diffusion")
    ]
    denoising = [
        Case(
            f"denoising, {size}, {passes} passes, {name}",
            partial(measure_denoising, model, size, passes, noisy, rates, toy),
            20,
        )
        for name, model in image_speed.MODELS.items()
        for passes in image_speed.PASSES
    ]
    return [*seeing, *denoising]


def measure_policy(
    model: str, size: str, vision: str, batch: int, kind: str,
    rates: dict[str, dict[str, Any]], toy: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return the speed of updates of a policy with cameras, see `speed_of`."""
    shape = {**SHAPE, "cameras": {name: [SIDE, SIDE] for name in CAMERAS}}
    policy = make(model, size, DEVICE, f"vision={vision}", shape=shape)
    windows = random_windows(2 * batch, CAMERAS, SIDE)
    result = speed_of(policy, windows, batch, kind, rates, 1 if toy else 10)
    return result | {"parameters": policy.parameter_count}


def measure_denoising(
    model: str, size: str, passes: int, rows: int, rates: dict[str, dict[str, Any]], toy: bool
) -> dict[str, Any]:
    """Return the speed of denoising a batch, and its ratio to the minimum time of this work."""
    denoiser = image_speed.make(model, size).eval().requires_grad_(False)
    job = image_speed.denoising(denoiser, rows, passes)
    floor = floor_seconds(count_work(job), rates, "fp32")
    median = statistics.median(seconds_of(job, 2 if toy else 30))
    return {
        "batch_ms": 1e3 * median,
        "images_per_second": rows / median,
        "floor_ms": 1e3 * floor,
        "times_floor": median / floor,
        "side": image_speed.SIDE,
        "batch": rows,
        "parameters": denoiser.parameter_count,
        "threads": torch.get_num_threads(),
    }
