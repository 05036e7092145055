"""The watchdog of the control loop."""

import threading

from ebt_policy.real_robot.clock import MonotonicClock, SimulatedClock
from ebt_policy.real_robot.watchdogs import LoopWatchdog

TIMEOUT_S = 60.0  # seconds to wait for an expected event; long, as a busy machine is slow


def test_hanging_loop_is_stopped_by_the_watchdog():
    clock, messages = SimulatedClock(), []
    watchdog = LoopWatchdog(clock, 0.05, messages.append)
    clock.wait_until(1.0)
    watchdog.check()
    assert not messages  # inactive before the first heartbeat
    watchdog.beat()
    for moment in (1.04, 1.06, 1.2):
        clock.wait_until(moment)
        watchdog.check()
    assert messages == ["the control loop gave no heartbeat for 0.05 s"]  # reported once
    stopped = threading.Event()
    with LoopWatchdog(MonotonicClock(), 0.05, lambda reason: stopped.set()) as watchdog:
        watchdog.beat()
        assert stopped.wait(TIMEOUT_S)
