"""The device that benchmarks run on."""

from __future__ import annotations

import platform

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """Return the name of the GPU, or the type of the processor if there is no GPU."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def synchronize() -> None:
    """Wait until the device has finished its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
