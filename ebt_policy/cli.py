"""What the command-line entries share: choosing a device, and errors as one sentence."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.markup import escape

from ebt_policy.energy import DescentError
from ebt_policy.errors import ConfigError
from ebt_policy.io.interruption import Terminated, termination_interrupts
from ebt_policy.io.paths import reason
from ebt_policy.plugins import take_modules


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU when there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but PyTorch sees no GPU; use device=cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


# Options whose values are paths, or names where a path may stand: hydra's grammar reads brackets,
# commas, quotes and spaces, and has no letters but English ones.
PATHS = (
    *("run_dir", "output", "checkpoint", "images", "corpus", "video_dataset"),
    *("bag", "record", "recording", "rerun", "robot.driver.store", "robot.limits.workspace.model"),
    *(f"task.{name}" for name in ("path", "images", "corpus", "videos", "tokenizer", "features")),
)
TEXTS = ("prompt",)


def hydra_arguments(arguments: Sequence[str], *repeated: str) -> list[str]:
    """Turn what a user typed into arguments that hydra reads as it was meant.

    ``--module NAME`` is imported, values of `PATHS` and `TEXTS` are quoted, and a leading ``~`` of
    a path becomes the home folder.

    Args:
        repeated: options that may occur several times; they become one list.

    Raises:
        ConfigError: a module cannot be imported.
    """
    arguments = take_modules(arguments)
    sweep = not {"-m", "--multirun"}.isdisjoint(arguments)
    result: list[str] = []
    values: dict[str, list[str]] = {name: [] for name in repeated}
    for argument in arguments:
        added, equals, value = argument.partition("=")
        name = added.lstrip("+")
        known = equals and name in (*PATHS, *TEXTS, *repeated)
        if not known or _is_hydra_value(value, sweep):
            result.append(argument)
        elif name in repeated:
            values[name].append(quote(_expanded(name, value)))
        else:
            result.append(f"{added}={quote(_expanded(name, value))}")
    lists = [f"{name}=[{','.join(several)}]" for name, several in values.items() if several]
    return [*lists, *result]


def _is_hydra_value(value: str, sweep: bool) -> bool:
    """Whether a value is written in hydra's grammar: null, a list, quoted, or a sweep."""
    if value in ("", "null", "???"):
        return True
    if os.path.exists(value):
        return False
    listed = value.startswith("[") and value.endswith("]")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return listed or quoted or (sweep and "," in value)


def _expanded(name: str, value: str) -> str:
    return os.path.expanduser(value) if name in PATHS else value


def quote(value: str) -> str:
    """A value as hydra takes it whatever it holds: backslashes count twice before a quote alone."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


@contextmanager
def report_errors() -> Iterator[None]:
    """Print what a user can mend as one sentence and exit with 2; bugs keep their traceback.

    Ctrl-C exits with 130. A request to terminate is handled alike and exits with 143: what has
    begun is finished or removed, and locks are released.
    """
    from ebt_policy.training.trainer import NonFiniteLoss

    # Messages hold paths: unwrapped they can be copied, escaped their brackets stay.
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with termination_interrupts():
            yield
    except (ValueError, OSError, NonFiniteLoss, DescentError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        console.print(
            f"[bold red]error:[/] out of memory ({escape(reason(error))}); use a smaller "
            "train.batch_size or size."
        )
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        console.print(escape(f"interrupted{f': {interruption}' if str(interruption) else ''}"))
        sys.exit(143 if isinstance(interruption, Terminated) else 130)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether this is what PyTorch raises without memory, on a GPU or on the CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)
