"""What the command-line entries share: choosing a device, and errors as one sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.markup import escape

from ebt_policy.energy.descent import DescentError
from ebt_policy.options import ConfigError


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU when there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but PyTorch sees no GPU; use device=cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def gather(arguments: Sequence[str], *names: str) -> list[str]:
    """Settings that may be repeated, ``name=a name=b``, as one list: hydra knows each name once.

    Their values are quoted, since they may hold what hydra's grammar has other uses for.
    """
    arguments = list(arguments)
    for name in (f"{name}=" for name in names):
        values = [a.removeprefix(name) for a in arguments if a.startswith(name)]
        if not values or any(v.startswith("[") or v == "null" for v in values):
            continue
        quoted = ",".join(map(quote, values))
        rest = [a for a in arguments if not a.startswith(name)]
        arguments = [f"{name}[{quoted}]", *rest]
    return arguments


def quote(value: str) -> str:
    """A value as hydra takes it whatever it holds: backslashes count twice before a quote alone."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


@contextmanager
def report_errors() -> Iterator[None]:
    """Print what a user can mend as one sentence and exit with 2; bugs keep their traceback."""
    from ebt_policy.training.trainer import NonFiniteLoss

    # Messages hold paths: unwrapped they can be copied, escaped their brackets stay.
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        yield
    except (ValueError, OSError, NonFiniteLoss, DescentError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; a training goes on from its last checkpoint with resume=true")
        sys.exit(130)
