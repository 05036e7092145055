"""The processes of a training run, which ``torchrun`` starts."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from ebt_policy.errors import ConfigError

# Only the main process downloads data and plays rollouts. The others wait for it at most this long.
WAIT = timedelta(hours=1)
LAUNCH = "torchrun --standalone --nproc_per_node N -m ebt_policy.train ..."


def join_processes(device: torch.device, mixed_precision: str) -> Accelerator:
    """Return this process's accelerator, connected with the other processes of its launch.

    Args:
        device: the kind of device to train on; with several processes, each gets its own GPU.
        mixed_precision: see `TrainConfig`.

    Raises:
        ConfigError: if there are fewer GPUs than processes, or ``accelerate launch`` was asked for
            several processes but started only one.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda" and processes > (gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"{processes} processes need {processes} GPUs, but PyTorch sees {gpus}; start {gpus}, "
            "or use device=cpu."
        )
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
    )
    if accelerator.num_processes == 1 and _several_were_asked_for():
        raise ConfigError(
            "`accelerate launch` was asked for several processes but started only this one; start "
            f"them with {LAUNCH}"
        )
    return accelerator


def devices(accelerator: Accelerator) -> str:
    """Return the devices of a training run as text, such as ``cpu`` or ``2 processes, cuda``."""
    count, kind = accelerator.num_processes, accelerator.device.type
    return kind if count == 1 else f"{count} processes, {kind}"


def _several_were_asked_for() -> bool:
    """Return whether `accelerate launch --num_processes N` with N > 1 started only this process.

    Without GPUs, it sets ``ACCELERATE_USE_CPU`` and ``MASTER_ADDR`` as for several processes, but
    starts one process without a rank.
    """
    names = os.environ.keys()
    return {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= names and "RANK" not in names
