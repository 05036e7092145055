"""What the benchmarks' commands share: settings as ``name=value``, and where results go."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ebt_policy.io.atomic_write import atomic_write

RESULTS = Path("docs/results")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settings(**defaults: Any) -> SimpleNamespace:
    """Settings of the command line, in the types of their defaults.

    Exits with a sentence that names settings that are unknown, or values of another type.
    """
    found = dict(defaults)
    for argument in sys.argv[1:]:
        name, equals, value = argument.partition("=")
        if not equals or name not in defaults:
            sys.exit(f"error: unknown settings {argument!r}; there are {', '.join(defaults)}.")
        try:
            found[name] = type(defaults[name])(value)
        except ValueError:
            kind = type(defaults[name]).__name__
            sys.exit(f"error: {name} must be of type {kind}, got {value!r}.")
    return SimpleNamespace(**found)


def wait() -> None:
    """Wait until the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def store(name: str, text: str) -> None:
    """Write ``docs/results/NAME``, whole or not at all."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    atomic_write(RESULTS / name, text)


def command(module: str) -> str:
    """The command line, to be stored with its results."""
    return " ".join([f"python -m benchmarks.{module}", *sys.argv[1:]])
