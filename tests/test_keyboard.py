"""The operator's input: keys, signals and a closed terminal."""

import os
import signal

import pytest

from ebt_policy.real_robot.clock import MonotonicClock
from ebt_policy.real_robot.keyboard import Operator, listen_to_operator
from ebt_policy.real_robot.supervisor import EStop, Supervisor

TIMEOUT_S = 60.0  # seconds to wait for an expected event; long, as a busy machine is slow


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_trigger_the_emergency_stop_and_handlers_are_restored(name):
    estop = EStop()
    operator = Operator(Supervisor(MonotonicClock()), estop)
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with listen_to_operator(operator):
        with estop.pressed._cond:  # type: ignore[attr-defined]  # The main thread is in `Event.wait`.
            signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert operator.quit.wait(TIMEOUT_S)
        assert estop.reason == ("Ctrl-C" if name == "SIGINT" else name)
        assert estop.pressed.is_set()
    assert signal.getsignal(number) is before


def test_closed_terminal_triggers_the_emergency_stop(monkeypatch):
    import pty

    person, terminal = pty.openpty()
    estop = EStop()
    operator = Operator(Supervisor(MonotonicClock()), estop)
    with open(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with listen_to_operator(operator) as keys:
            assert keys
            os.write(person, b" ")
            assert estop.pressed.wait(TIMEOUT_S) and not operator.quit.is_set()
            os.close(person)
            assert operator.quit.wait(TIMEOUT_S)
    assert estop.reason == "space bar"
