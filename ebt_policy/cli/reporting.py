"""Error messages and log messages on stderr. An error that a user can fix is one sentence."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.markup import escape

from ebt_policy.energy import DescentError
from ebt_policy.envs.errors import EnvError
from ebt_policy.errors import UserError
from ebt_policy.io.interruption import Terminated, termination_interrupts
from ebt_policy.io.paths import reason

# Errors that a user can fix. The energy core and the environments import nothing of this package,
# so their errors have no common base class with the others.
USER_ERRORS = (UserError, DescentError, EnvError)


@contextmanager
def report_errors() -> Iterator[None]:
    """Print an error that a user can fix as one sentence and exit with status 2.

    Every other error is a bug and keeps its traceback.

    Ctrl-C exits with status 130, and SIGTERM with 143. Work in progress is finished or removed, and
    locks are released.
    """
    configure_logging()
    # Messages contain paths. Without wrapping they can be copied; escaping keeps their brackets.
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with termination_interrupts():
            yield
    except USER_ERRORS as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        console.print(
            f"[bold red]error:[/] out of memory ({escape(reason(error))}); use a smaller "
            "train.batch_size or size."
        )
        sys.exit(2)
    except OSError as error:  # for example, from a video encoder or another library
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        console.print(
            f"[bold red]error:[/] {escape(str(error))}; free some space, then run the same "
            "command again."
        )
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        console.print(escape(f"interrupted{f': {interruption}' if str(interruption) else ''}"))
        sys.exit(143 if isinstance(interruption, Terminated) else 130)


def configure_logging() -> None:
    """Send the package's log messages to stderr through rich; repeated calls have no effect."""
    logger = logging.getLogger("ebt_policy")
    if any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        return
    logger.addHandler(_StderrHandler(logging.INFO))
    logger.setLevel(logging.INFO)


class _StderrHandler(logging.Handler):
    """A handler that prints unformatted messages to the current stderr, warnings in yellow."""

    def emit(self, record: logging.LogRecord) -> None:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        style = "yellow" if record.levelno >= logging.WARNING else None
        console.print(record.getMessage(), style=style, markup=False)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Return whether PyTorch or Python raised this error because memory ran out."""
    is_memory_error = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_memory_error or "can't allocate memory" in str(error)
