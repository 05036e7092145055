"""Speed of training policies: updates of the trainer on random windows.

Every loss is compiled. Cases with ``graphs`` replay forward and backward passes as CUDA graphs.
This saves time if small kernels run for a shorter time than their launch takes.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch.profiler import ProfilerActivity, profile

from benchmarks.device import DEVICE
from benchmarks.gpu.card import floor_seconds, precision, seconds_of
from benchmarks.gpu.results import Case
from benchmarks.speed import make
from benchmarks.training import compose_config
from ebt_policy.data.windows import Windows
from ebt_policy.evaluation.flops import Work, training_work
from ebt_policy.models.base import Model
from ebt_policy.training.batches import TrainingData
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.processes import join_processes
from ebt_policy.training.trainer import Trainer

MODELS = {"energy": "ebt", "diffusion": "diffusion", "flow matching": "flow_matching"}
SIZES = ("m", "xs", "l")  # in order of priority
BATCHES = (256, 1024)
PRECISIONS = ("bf16", "tf32", "fp32")
PROFILED = 10  # updates
SECONDS = 75.0  # maximum duration of a case, mostly compilation


def cases(rates: dict[str, dict[str, Any]], toy: bool) -> list[Case]:
    """Return the cases, the most important first."""
    sizes, batches, precisions = (
        (("4xs",), (8,), ("bf16", "fp32")) if toy else (SIZES, BATCHES, PRECISIONS)
    )
    result = []
    for size, batch, precision_name, name in product(sizes, batches, precisions, MODELS):
        graphs = (False, True) if DEVICE.type == "cuda" and precision_name == "bf16" else (False,)
        for replay in graphs:
            job = partial(measure, MODELS[name], size, batch, precision_name, rates, replay, toy)
            key = f"{size}, batch {batch}, {precision_name}, {name}{', graphs' * replay}"
            result.append(Case(key, job, SECONDS))
    return result


def measure(
    model: str, size: str, batch: int, kind: str, rates: dict[str, dict[str, Any]],
    graphs: bool, toy: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return the speed of updates of a policy, see `speed_of`."""
    policy = make(model, size, DEVICE)
    windows = random_windows(2 * batch)
    result = speed_of(policy, windows, batch, kind, rates, 1 if toy else 20, graphs=graphs)
    return result | {"parameters": policy.parameter_count}


def random_windows(count: int, cameras: tuple[str, ...] = (), side: int = 96) -> Windows:
    """Return windows of one long random episode on the device, with images of each camera.

    Args:
        count: number of windows, at least.
        cameras: names of the cameras.
        side: height and width of an image, pixels.
    """
    rows = count + 32
    arrays: dict[str, Any] = {
        "obs": 512 * torch.rand(rows, 20),
        "action": 512 * torch.rand(rows, 2),
        **{name: torch.randint(256, (rows, side, side, 3), dtype=torch.uint8) for name in cameras},
    }
    return Windows(
        arrays, [rows], horizon=16, n_obs_steps=2, n_action_steps=8, device=DEVICE, cameras=cameras
    )


def speed_of(
    model: Model, data: TrainingData, batch: int, kind: str, rates: dict[str, dict[str, Any]],
    rounds: int, *, graphs: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the speed of the trainer, and the parts of the duration of an update.

    Args:
        model: untrained model on the device.
        data: training data.
        batch: batch size.
        kind: precision, one of `card.PRECISIONS`.
        rates: measured rates of the card.
        rounds: number of updates in each of five rounds.
        graphs: whether to replay the compiled passes as CUDA graphs.
    """
    work = training_work(model, data.gather(torch.arange(batch)))
    if kind == "bf16":  # The bytes were counted in single precision.
        work = Work(work.flops, work.bytes / 2)
    model.compile(mode="reduce-overhead" if graphs else None)
    with tempfile.TemporaryDirectory() as folder, precision(kind):
        trainer = trainer_of(model, data, batch, kind, Path(folder))
        trainer.model.train()
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

        def updates() -> None:  # There is no synchronisation between updates, as in training.
            for _ in range(rounds):
                trainer.train_step()

        median = statistics.median(seconds_of(updates, rounds=5)) / rounds
        gathering = seconds_of(lambda: trainer.batch(trainer.progress.step), rounds)
        peak = rates["matrix product, bf16"]["teraflops"]
        floor = floor_seconds(work, rates, kind)
        return {
            "update_ms": 1e3 * median,
            "updates_per_second": 1 / median,
            "samples_per_second": batch / median,
            "gigaflops_per_update": work.flops / 1e9,
            "share_of_bf16_peak": work.flops / median / (1e12 * peak),
            "floor_ms": 1e3 * floor,
            "times_floor": median / floor,
            "share_gathering_data": statistics.median(gathering) / median,
            "memory_gib": peak_gib(),
            **where_time_goes(trainer, median),
        }


def where_time_goes(trainer: Trainer, update_seconds: float) -> dict[str, float]:
    """Return kernel time, launches and host synchronisations of an update; empty on a CPU."""
    if DEVICE.type != "cuda":
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            trainer.train_step()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    kernels_us = sum(e.self_device_time_total for e in events)
    launches = sum(e.count for e in events if "Launch" in e.key)
    waits = sum(e.count for e in events if "Synchronize" in e.key) - 1  # without ours above
    return {
        "kernel_ms": kernels_us / PROFILED / 1e3,
        "share_kernels": kernels_us / PROFILED / 1e6 / update_seconds,
        "launches": launches / PROFILED,
        "synchronisations": waits / PROFILED,
    }


def peak_gib() -> float:
    """Return the peak memory that was allocated on the device since the last reset, GiB."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0


def trainer_of(model: Model, data: TrainingData, batch: int, kind: str, folder: Path) -> Trainer:
    """Return a trainer with the default configuration for a model that is already compiled."""
    mixed = "bf16" if kind == "bf16" else "no"
    config = compose_config(
        "train.minutes=null", "train.steps=100000", "train.compile=false",
        f"train.batch_size={batch}", f"train.mixed_precision={mixed}",
    )["train"]  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)  # It may have another precision.
    accelerator = join_processes(DEVICE, mixed)
    return Trainer(model, data, TrainConfig(**config), folder, seed=0, accelerator=accelerator)
