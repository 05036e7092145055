"""Execution of predictions outside the control loop: in a thread, or on a simulated clock."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ebt_policy.real_robot.clock import Clock, SimulatedClock


@dataclass(frozen=True)
class JobResult:
    """The outcome of a job.

    Attributes:
        value: return value of the job, None if it raised an exception.
        error: exception that the job raised, or None.
        seconds: duration of the job.
    """

    value: Any
    error: Exception | None
    seconds: float


class InferenceWorker(ABC):
    """An executor of one job at a time.

    Attributes:
        started_at: time at which the current job was submitted, clock seconds; None without a job.
    """

    started_at: float | None = None

    @abstractmethod
    def submit(self, job: Callable[[], Any]) -> None:
        """Start a job. No other job may be running."""

    @abstractmethod
    def take_result(self) -> JobResult | None:
        """Return the result of the current job and forget the job; None if it has not ended."""

    @abstractmethod
    def wait(self, deadline: float) -> None:
        """Wait until the current job has ended, at most until ``deadline`` (clock seconds)."""

    @abstractmethod
    def abandon(self) -> None:
        """Forget the current job, even one that never ends."""


@dataclass
class _JobThread:
    """The state of one thread of `ThreadWorker`; an abandoned thread changes only its own.

    Attributes:
        jobs: jobs for the thread.
        ended: event that is set when the last job has ended.
        result: outcome of the last job that has ended.
    """

    jobs: queue.SimpleQueue[Callable[[], Any]] = field(default_factory=queue.SimpleQueue)
    ended: threading.Event = field(default_factory=threading.Event)
    result: JobResult | None = None


class ThreadWorker(InferenceWorker):
    """A thread of this process. `abandon` replaces a thread that hangs by a new one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._thread = self._start_thread()

    def _start_thread(self) -> _JobThread:
        state = _JobThread()
        thread = threading.Thread(target=self._work, args=(state,), daemon=True, name="planner")
        thread.start()
        return state

    def _work(self, state: _JobThread) -> None:
        while True:
            job = state.jobs.get()
            start = self._clock.now()
            try:
                state.result = JobResult(job(), None, self._clock.now() - start)
            except Exception as error:  # The planner raises it in the thread of the loop.
                state.result = JobResult(None, error, self._clock.now() - start)
            state.ended.set()
            if state is not self._thread:  # It was abandoned.
                return

    def submit(self, job: Callable[[], Any]) -> None:
        assert self.started_at is None
        self.started_at = self._clock.now()
        self._thread.ended.clear()
        self._thread.jobs.put(job)

    def take_result(self) -> JobResult | None:
        if self.started_at is None or not self._thread.ended.is_set():
            return None
        self.started_at = None
        return self._thread.result

    def wait(self, deadline: float) -> None:
        if self.started_at is not None:
            self._thread.ended.wait(max(deadline - self._clock.now(), 0.0))

    def abandon(self) -> None:
        if self.started_at is not None:
            self.started_at = None
            self._thread = self._start_thread()


class SimulatedWorker(InferenceWorker):
    """A worker whose jobs have a simulated duration; the clock does not advance while they compute.

    Args:
        clock: clock of the control loop.
        delay: returns the duration of the next job, s; infinity simulates a job that hangs.
    """

    def __init__(self, clock: SimulatedClock, delay: Callable[[], float]) -> None:
        self._clock, self._delay = clock, delay
        self._result: JobResult | None = None
        self._ends_at = 0.0

    def submit(self, job: Callable[[], Any]) -> None:
        assert self.started_at is None
        seconds = self._delay()
        self.started_at = self._clock.now()
        self._ends_at = self.started_at + seconds
        try:
            self._result = JobResult(job(), None, seconds)
        except Exception as error:  # The planner raises it, as with `ThreadWorker`.
            self._result = JobResult(None, error, seconds)

    def take_result(self) -> JobResult | None:
        if self.started_at is None or self._clock.now() < self._ends_at:
            return None
        self.started_at = None
        return self._result

    def wait(self, deadline: float) -> None:
        if self.started_at is not None:
            self._clock.wait_until(max(min(deadline, self._ends_at), self._clock.now()))

    def abandon(self) -> None:
        self.started_at = None
