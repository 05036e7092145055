"""The person beside the robot: keys of the terminal, Ctrl-C and signals."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from real_robot.supervisor import EStop, State, Supervisor

KEYS = "space stop, h hold, r go on, s start, a re-arm, q quit"


class Operator:
    """What a person asks for.

    Attributes:
        quits: set by q: the run ends, the robot is held.
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
        elif pressed == "a":
            self._estop.release()
            self._supervisor.rearm()
        elif pressed == "q":
            self.quits.set()


@contextmanager
def listening(operator: Operator, estop: EStop) -> Iterator[bool]:
    """Keys and signals act while this is open; gives whether there is a terminal for keys.

    Ctrl-C and SIGTERM are the emergency stop; a second one ends the program.
    """

    def stop(number: int, _frame: object) -> None:
        if estop.pressed.is_set():
            raise KeyboardInterrupt
        estop.press("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        operator.quits.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if os.name == "posix" and sys.stdin.isatty():
            with _keys(operator.key):
                yield True
        else:
            yield False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[None]:
    """Give each key of the terminal as it is pressed, from a thread."""
    import termios
    import tty

    terminal, ended = sys.stdin.fileno(), threading.Event()
    saved = termios.tcgetattr(terminal)

    def read() -> None:
        while not ended.is_set():
            if select.select([terminal], [], [], 0.05)[0]:
                press(os.read(terminal, 1).decode(errors="ignore"))

    tty.setcbreak(terminal)
    thread = threading.Thread(target=read, daemon=True, name="keys")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
