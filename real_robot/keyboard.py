"""The operator of the robot: keys of the terminal, Ctrl-C and signals."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ebt_policy.real_robot.supervisor import EStop, State, Supervisor

KEYS = "space stop, h hold, r resume, t take over, s start, a re-arm, q quit"
KEEP_KEYS = {"\n": True, "\x7f": False, "\b": False}  # Enter and Backspace
END_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Operator:
    """The requests of the operator.

    Attributes:
        quit: event that ends the run; set by the key q, a signal or a closed terminal.
        wants_control: whether the person wants to move the robot; the key t changes it.
        keep: whether to keep the episode that the person ends, by Enter (True) or Backspace
            (False), in teleoperation; None before.
    """

    def __init__(self, supervisor: Supervisor, estop: EStop) -> None:
        self._supervisor, self._estop = supervisor, estop
        self.quit = threading.Event()
        self.wants_control = False
        self.keep: bool | None = None

    def press_key(self, pressed: str) -> None:
        """React to a key of `KEYS`, and ignore other keys."""
        if pressed == " ":
            self._estop.press("space bar")
        elif pressed == "h":
            self._supervisor.hold()
        elif pressed == "r" and self._supervisor.state is State.HOLD:
            self._supervisor.transition(State.RUNNING, "resumed by a person")
        elif pressed == "t":
            self.wants_control = not self.wants_control
            if self.wants_control and self._supervisor.state is State.HOLD:
                self._supervisor.transition(State.RUNNING, "taken over by a person")
        elif pressed == "s" and self._supervisor.state is State.READY:
            self._supervisor.transition(State.RUNNING, "started by a person")
        elif pressed == "a" and self._supervisor.rearm():
            # A stop that the loop has not handled yet is not released, because rearm() fails.
            self._estop.release()
        elif pressed == "q":
            self.quit.set()
        elif pressed in KEEP_KEYS and self._supervisor.state in (State.RUNNING, State.HOLD):
            self.keep = KEEP_KEYS[pressed]

    def stop_and_quit(self, reason: str) -> None:
        """Stop the robot and end the run."""
        self._estop.press(reason)
        self.quit.set()


@contextmanager
def listen_to_operator(operator: Operator) -> Iterator[bool]:
    """React to keys and signals while this context is open.

    Ctrl-C, SIGTERM and a closed terminal press the emergency stop and end the run. A second Ctrl-C
    or SIGTERM ends the program at once.

    Yields:
        Whether there is a terminal at which keys can be pressed.
    """

    has_stopped = False
    # `EStop.press` waits for a lock that the interrupted thread may hold, so another thread calls
    # it. A handler may put into a `SimpleQueue`.
    reasons: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def stop(number: int, _frame: object) -> None:
        nonlocal has_stopped
        if (has_stopped or operator.quit.is_set()) and number in END_SIGNALS:
            raise KeyboardInterrupt
        has_stopped = True
        reasons.put("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    def press() -> None:
        while (reason := reasons.get()) is not None:
            operator.stop_and_quit(reason)

    thread = threading.Thread(target=press, daemon=True, name="signals")
    thread.start()
    numbers = (*END_SIGNALS, signal.SIGHUP) if os.name == "posix" else END_SIGNALS
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        if os.name == "posix" and sys.stdin.isatty():
            with _read_keys(operator):
                yield True
        else:
            yield False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        reasons.put(None)
        thread.join()


@contextmanager
def _read_keys(operator: Operator) -> Iterator[None]:
    """Pass each pressed key of the terminal to the operator, from a thread."""
    import termios
    import tty

    terminal, ended = sys.stdin.fileno(), threading.Event()
    saved = termios.tcgetattr(terminal)

    def read_loop() -> None:
        while not ended.is_set():
            if not select.select([terminal], [], [], 0.05)[0]:
                continue
            try:
                pressed = os.read(terminal, 1)
            except OSError:
                pressed = b""
            if not pressed:  # The robot can no longer be stopped with a key.
                operator.stop_and_quit("the terminal was closed")
                return
            operator.press_key(pressed.decode(errors="ignore"))

    tty.setcbreak(terminal)
    thread = threading.Thread(target=read_loop, daemon=True, name="keys")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(termios.error):  # The terminal may be closed.
            termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
