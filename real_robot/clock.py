"""The clock of the control loop: the machine's monotonic clock, or a simulated one."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """A clock whose time never decreases."""

    def now(self) -> float:
        """Return the time in seconds since an arbitrary fixed moment (clock seconds)."""
        ...

    def wait_until(self, moment: float, wake: threading.Event | None = None) -> None:
        """Wait until a moment (clock seconds), or until ``wake`` is set."""
        ...


class MonotonicClock:
    """The machine's `time.monotonic`, which all of its processes share."""

    def now(self) -> float:
        return time.monotonic()

    def wait_until(self, moment: float, wake: threading.Event | None = None) -> None:
        wake = wake or threading.Event()
        while (remaining := moment - time.monotonic()) > 0 and not wake.wait(remaining):
            pass


class SimulatedClock:
    """A clock that advances only in `wait_until`, and runs scheduled events at their times.

    A simulated hour of control takes only the time of its computations and is reproducible.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()  # Events of the same moment run in the order of scheduling.

    def now(self) -> float:
        return self._now

    def call_at(self, moment: float, event: Callable[[], None]) -> None:
        """Schedule a call of ``event`` at a moment (clock seconds)."""
        self._due.append((moment, next(self._order), event))
        self._due.sort(key=lambda due: due[:2])

    def wait_until(self, moment: float, wake: threading.Event | None = None) -> None:
        while self._due and self._due[0][0] <= moment:
            due_time, _, event = self._due.pop(0)
            self._now = max(self._now, due_time)
            event()
            if wake is not None and wake.is_set():
                return
        self._now = max(self._now, moment)
