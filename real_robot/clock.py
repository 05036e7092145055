"""The clock of the control loop: the machine's monotonic clock, or a simulated one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """A clock that never runs backwards."""

    def now(self) -> float:
        """Return the seconds since an arbitrary moment."""
        ...

    def wait_until(self, moment: float, wake: threading.Event | None = None) -> None:
        """Return at a moment (clock seconds), or as soon as ``wake`` is set."""
        ...


class MonotonicClock:
    """The clock of the machine: `time.monotonic`, the same for all of its processes."""

    def now(self) -> float:
        return time.monotonic()

    def wait_until(self, moment: float, wake: threading.Event | None = None) -> None:
        wake = wake or threading.Event()
        while (remaining := moment - time.monotonic()) > 0 and not wake.wait(remaining):
            pass


class SimulatedClock:
    """A clock that only moves in `wait_until`; scheduled events happen at their own time.

    An hour of control then takes as long as its computations, and is the same every time.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def now(self) -> float:
        return self._now

    def call_at(self, moment: float, event: Callable[[], None]) -> None:
        """Schedule a call of ``event`` at a moment (clock seconds)."""
        self._due.append((moment, len(self._due), event))
        self._due.sort(key=lambda due: due[:2])

    def wait_until(self, moment: float, wake: threading.Event | None = None) -> None:
        while self._due and self._due[0][0] <= moment:
            due_time, _, event = self._due.pop(0)
            self._now = max(self._now, due_time)
            event()
            if wake is not None and wake.is_set():
                return
        self._now = max(self._now, moment)
