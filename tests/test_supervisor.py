"""The supervisor: states, emergency stop and console output."""

import io
import threading

from rich.console import Console

from ebt_policy.real_robot.clock import MonotonicClock, SimulatedClock
from ebt_policy.real_robot.dashboard import announce_changes
from ebt_policy.real_robot.supervisor import EStop, State, Supervisor

TIMEOUT_S = 60.0  # seconds to wait for an expected event; long, as a busy machine is slow


def test_emergency_stop_wakes_the_loop():
    estop, clock = EStop(), MonotonicClock()
    threading.Timer(0.05, lambda: estop.press("button")).start()
    end = clock.now() + TIMEOUT_S
    clock.wait_until(end, estop.pressed)
    assert estop.pressed.is_set() and clock.now() < end
    estop.press("another")
    assert estop.reason == "button"


def test_state_changes_are_printed_when_they_happen():
    output, supervisor = io.StringIO(), Supervisor(SimulatedClock())
    supervisor.transition(State.READY, "checked")
    console = Console(file=output, width=20)
    with announce_changes(supervisor, console, {State.HOLD: "r resumes it"}):
        supervisor.transition(State.RUNNING, "started")
        supervisor.transition(State.HOLD, "no observation for 0.3 s: obs is (2,) instead of [/7]")
        supervisor.transition(State.RUNNING, "resumed by a person")
        supervisor.transition(State.FAULT, "the policy failed (RuntimeError: two\nlines).")
    assert output.getvalue().splitlines() == [
        "held: no observation for 0.3 s: obs is (2,) instead of [/7] (r resumes it)",
        "running: resumed by a person",
        "stopped: the policy failed (RuntimeError: two lines).",
    ]


def test_fault_stays_until_acknowledged():
    supervisor = Supervisor(SimulatedClock())
    assert not supervisor.transition(State.RUNNING, "too early")
    for state in (State.READY, State.RUNNING, State.FAULT):
        assert supervisor.transition(state, "on")
    for state in State:
        assert not supervisor.transition(state, "on")
    assert supervisor.rearm() and not supervisor.rearm()
    assert [change.state for change in supervisor.changes][-1] is State.DISARMED
