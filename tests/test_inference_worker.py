"""`ThreadWorker`: predictions in a thread, errors and abandoned jobs."""

import itertools
import threading

import pytest

from ebt_policy.real_robot.clock import MonotonicClock
from ebt_policy.real_robot.inference_worker import ThreadWorker

TIMEOUT_S = 60.0  # seconds to wait for an expected event; long, as a busy machine is slow


def test_thread_worker_predicts_and_abandons_a_hanging_job():
    clock = MonotonicClock()
    worker = ThreadWorker(clock)
    worker.submit(lambda: 7)
    worker.wait(clock.now() + TIMEOUT_S)
    done = worker.take_result()
    assert done is not None and done.value == 7 and worker.take_result() is None
    worker.submit(lambda: 1 / 0)
    worker.wait(clock.now() + TIMEOUT_S)
    done = worker.take_result()
    assert done is not None and isinstance(done.error, ZeroDivisionError)
    blocked = threading.Event()
    worker.submit(blocked.wait)
    worker.wait(clock.now() + 0.02)
    assert worker.take_result() is None
    worker.abandon()
    worker.submit(lambda: 8)
    worker.wait(clock.now() + TIMEOUT_S)
    blocked.set()  # the abandoned result arrives late and is ignored
    done = worker.take_result()
    assert done is not None and done.value == 8


@pytest.mark.parametrize("line", [0, 1])
def test_a_thread_that_is_abandoned_at_any_line_does_not_change_the_next_result(line):
    """Pause the thread before a line of `ThreadWorker._work` that follows its job."""
    has_ended, paused, resumed = threading.Event(), threading.Event(), threading.Event()
    threads, lines = [], itertools.count()

    def trace(frame, event, _argument):
        if frame.f_code.co_name != "_work":
            return None
        if event == "line" and has_ended.is_set() and next(lines) == line:
            paused.set()
            resumed.wait(TIMEOUT_S)
        return trace

    def first_job():
        threads.append(threading.current_thread())
        has_ended.set()
        return 7

    before = threading.gettrace()
    threading.settrace(trace)
    clock = MonotonicClock()
    worker = ThreadWorker(clock)
    threading.settrace(before)
    worker.submit(first_job)
    assert paused.wait(TIMEOUT_S)
    worker.abandon()
    worker.submit(lambda: 8)
    worker.wait(clock.now() + TIMEOUT_S)
    resumed.set()
    threads[0].join(TIMEOUT_S)
    assert not threads[0].is_alive()
    done = worker.take_result()
    assert done is not None and done.value == 8
