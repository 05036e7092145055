"""The option ``device``."""

from __future__ import annotations

import torch

from ebt_policy.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is a GPU if one is available, else the CPU.

    Raises:
        ConfigError: if the name is unknown, or ``cuda`` is requested without a GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but PyTorch sees no GPU; use device=cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
