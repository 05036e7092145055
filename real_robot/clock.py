"""Time as the control loop sees it: the machine's monotonic clock, or one that a test moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Seconds since some moment; never runs backwards."""

    def now(self) -> float: ...

    def wait_until(self, moment: float, wake: threading.Event | None = None) -> None:
        """Return at the moment, or as soon as ``wake`` is set."""
        ...


class MonotonicClock:
    """The machine's. `time.monotonic` is the same for all processes of one machine."""

    def now(self) -> float:
        return time.monotonic()

    def wait_until(self, moment: float, wake: threading.Event | None = None) -> None:
        wake = wake or threading.Event()
        while (left := moment - time.monotonic()) > 0 and not wake.wait(left):
            pass


class SimulatedClock:
    """Stands still but for `wait_until`; what is due in between happens at its own time.

    An hour of control then takes as long as its computations, and is the same every time.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def now(self) -> float:
        return self._now

    def at(self, moment: float, event: Callable[[], None]) -> None:
        """Call ``event`` at the moment."""
        self._due.append((moment, len(self._due), event))
        self._due.sort(key=lambda due: due[:2])

    def wait_until(self, moment: float, wake: threading.Event | None = None) -> None:
        while self._due and self._due[0][0] <= moment:
            when, _, event = self._due.pop(0)
            self._now = max(self._now, when)
            event()
            if wake is not None and wake.is_set():
                return
        self._now = max(self._now, moment)
