"""Handling of Ctrl-C and SIGTERM, so that work in progress is finished or removed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Terminated(KeyboardInterrupt):
    """A request to terminate (SIGTERM), which cluster schedulers and container runtimes send."""


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM within this context, unless it already has a handler."""

    def interrupt(*_: object) -> None:
        raise Terminated

    if not _may_handle() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class DeferredInterruption:
    """A context that only records the first SIGINT or SIGTERM; a second one acts at once.

    Attributes:
        received: the recorded signal, or None.
    """

    received: int | None = None

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if _may_handle():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()
        os.write(2, b"\nstopping after this step; interrupt again to quit at once\n")

    def error(self, message: str) -> KeyboardInterrupt:
        """Return the exception to raise once the work in progress is finished."""
        kind = Terminated if self.received == signal.SIGTERM else KeyboardInterrupt
        return kind(message)


def _may_handle() -> bool:
    """Return whether this is the main thread; no other thread can set signal handlers."""
    return threading.current_thread() is threading.main_thread()
