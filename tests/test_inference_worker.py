"""`ThreadWorker`: predictions in a thread, errors and abandoned jobs."""

import threading

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
