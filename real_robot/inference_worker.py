"""Predictions beside the control loop: in a thread, or pretended on a simulated clock."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ebt_policy.real_robot.clock import Clock, SimulatedClock


@dataclass(frozen=True)
class Done:
    """A job that ended.

    Attributes:
        value: what it returned, None if it raised.
        error: what it raised.
        seconds: how long it took.
    """

    value: Any
    error: Exception | None
    seconds: float


class Background(ABC):
    """Does one job at a time.

    Attributes:
        since: when the job at hand was given, None without one.
    """

    since: float | None = None

    @abstractmethod
    def submit(self, job: Callable[[], Any]) -> None:
        """Begin a job; there must be none."""

    @abstractmethod
    def take(self) -> Done | None:
        """The job at hand, once, if it has ended."""

    @abstractmethod
    def wait(self, until: float) -> None:
        """Return as soon as the job has ended, at the latest at this moment."""

    @abstractmethod
    def abandon(self) -> None:
        """Forget the job at hand, even one that never ends."""


class ThreadBackground(Background):
    """A thread of this process. One that hangs is left behind, and another one started."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start()

    def _start(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._done: Done | None = None
        work = threading.Thread(
            target=self._work, args=(self._jobs, self._ended), daemon=True, name="planner"
        )
        work.start()

    def _work(self, jobs: queue.SimpleQueue, ended: threading.Event) -> None:
        while ended is self._ended:  # until it is abandoned
            job = jobs.get()
            start = self._clock.now()
            try:
                done = Done(job(), None, self._clock.now() - start)
            except Exception as error:  # the loop decides what it means
                done = Done(None, error, self._clock.now() - start)
            if ended is self._ended:
                self._done = done
                ended.set()

    def submit(self, job: Callable[[], Any]) -> None:
        assert self.since is None
        self.since = self._clock.now()
        self._ended.clear()
        self._jobs.put(job)

    def take(self) -> Done | None:
        if self.since is None or not self._ended.is_set():
            return None
        self.since = None
        return self._done

    def wait(self, until: float) -> None:
        if self.since is not None:
            self._ended.wait(max(until - self._clock.now(), 0.0))

    def abandon(self) -> None:
        if self.since is not None:
            self.since = None
            self._start()


class SimulatedBackground(Background):
    """Jobs that take as long as `delay` says, on a clock that stands still while they compute.

    Args:
        delay: seconds of the next job; infinite for one that hangs.
    """

    def __init__(self, clock: SimulatedClock, delay: Callable[[], float]) -> None:
        self._clock, self._delay = clock, delay
        self._done: Done | None = None
        self._ends = 0.0

    def submit(self, job: Callable[[], Any]) -> None:
        assert self.since is None
        seconds = self._delay()
        self.since = self._clock.now()
        self._ends = self.since + seconds
        try:
            self._done = Done(job(), None, seconds)
        except Exception as error:  # as in a thread
            self._done = Done(None, error, seconds)

    def take(self) -> Done | None:
        if self.since is None or self._clock.now() < self._ends:
            return None
        self.since = None
        return self._done

    def wait(self, until: float) -> None:
        if self.since is not None:
            self._clock.wait_until(max(min(until, self._ends), self._clock.now()))

    def abandon(self) -> None:
        self.since = None
