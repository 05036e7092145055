"""The person beside the robot: keys of the terminal, Ctrl-C and signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ebt_policy.real_robot.supervisor import EStop, State, Supervisor

KEYS = "space stop, h hold, r go on, s start, a re-arm, q quit"
ENDING = (signal.SIGINT, signal.SIGTERM)


class Operator:
    """What a person asks for.

    Attributes:
        quits: set by q, a signal or a closed terminal: the run ends, the robot is held.
    """

    def __init__(self, supervisor: Supervisor, estop: EStop) -> None:
        self._supervisor, self._estop = supervisor, estop
        self.quits = threading.Event()

    def key(self, pressed: str) -> None:
        """React to a key of `KEYS`; any other does nothing."""
        if pressed == " ":
            self._estop.press("space bar")
        elif pressed == "h":
            self._supervisor.to(State.HOLD, "held by a person")
        elif pressed == "r" and self._supervisor.state is State.HOLD:
            self._supervisor.to(State.RUNNING, "a person let it go on")
        elif pressed == "s" and self._supervisor.state is State.READY:
            self._supervisor.to(State.RUNNING, "started by a person")
        elif pressed == "a" and self._supervisor.rearm():  # a stop that was not seen yet stays
            self._estop.release()
        elif pressed == "q":
            self.quits.set()

    def leave(self, reason: str) -> None:
        """Stop the robot and end the run."""
        self._estop.press(reason)
        self.quits.set()


@contextmanager
def listening(operator: Operator) -> Iterator[bool]:
    """Keys and signals act while this is open; gives whether there is a terminal for keys.

    Ctrl-C, SIGTERM and a terminal that is closed are the emergency stop and end the run; Ctrl-C or
    SIGTERM during that ends the program at once.
    """

    def stop(number: int, _frame: object) -> None:
        if operator.quits.is_set() and number in ENDING:
            raise KeyboardInterrupt
        operator.leave("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    numbers = (*ENDING, signal.SIGHUP) if os.name == "posix" else ENDING
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        if os.name == "posix" and sys.stdin.isatty():
            with _keys(operator):
                yield True
        else:
            yield False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keys(operator: Operator) -> Iterator[None]:
    """Give each key of the terminal to the operator as it is pressed, from a thread."""
    import termios
    import tty

    terminal, ended = sys.stdin.fileno(), threading.Event()
    saved = termios.tcgetattr(terminal)

    def read() -> None:
        while not ended.is_set():
            if not select.select([terminal], [], [], 0.05)[0]:
                continue
            try:
                pressed = os.read(terminal, 1)
            except OSError:
                pressed = b""
            if not pressed:  # nobody could stop the robot by a key any more
                operator.leave("the terminal was closed")
                return
            operator.key(pressed.decode(errors="ignore"))

    tty.setcbreak(terminal)
    thread = threading.Thread(target=read, daemon=True, name="keys")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(termios.error):  # one that was closed
            termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
