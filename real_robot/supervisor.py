"""Whether the robot may move: one state, and who may change it how."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum

from ebt_policy.real_robot.clock import Clock


class State(StrEnum):
    """DISARMED: nothing is sent. READY: checked and warmed up, waits for a start. RUNNING: the
    policy moves the robot. HOLD: it is slowed down and held, and a person may let it go on. FAULT:
    it is stopped until a person has looked and re-arms it."""

    DISARMED = "disarmed"
    READY = "ready"
    RUNNING = "running"
    HOLD = "hold"
    FAULT = "fault"


# The robot stands, and a person is to look; with a word for it.
SAID = {State.HOLD: "held", State.FAULT: "stopped"}
STOPPED = tuple(SAID)
ALLOWED = {  # from -> to; every state may fault and be disarmed, but for leaving a fault unseen
    State.DISARMED: {State.READY, State.FAULT},
    State.READY: {State.RUNNING, State.FAULT, State.DISARMED},
    State.RUNNING: {State.HOLD, State.FAULT, State.DISARMED},
    State.HOLD: {State.RUNNING, State.FAULT, State.DISARMED},
    State.FAULT: set(),
}


@dataclass(frozen=True)
class Change:
    """A change of state: when (clock seconds), to what, why."""

    at: float
    state: State
    reason: str


class Supervisor:
    """Holds the state. Its methods may be called from any thread.

    Attributes:
        changes: all of them, oldest first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.changes = [Change(clock.now(), State.DISARMED, "not armed yet")]

    @property
    def state(self) -> State:
        return self.changes[-1].state

    @property
    def reason(self) -> str:
        return self.changes[-1].reason

    def to(self, state: State, reason: str) -> bool:
        """Change the state, where it may be changed so; whether it was. A reason is one line."""
        with self._lock:
            if state not in ALLOWED[self.state]:
                return False
            self.changes.append(Change(self._clock.now(), state, " ".join(reason.split())))
            return True

    def rearm(self) -> bool:
        """A person has looked: a fault is over, and everything is to be checked again."""
        with self._lock:
            if self.state is not State.FAULT:
                return False
            self.changes.append(Change(self._clock.now(), State.DISARMED, "re-armed"))
            return True


class EStop:
    """The emergency stop: anyone may press it, from any thread and from a signal handler.

    Attributes:
        pressed: wakes whoever waits for it.
        reason: who pressed it first.
    """

    def __init__(self) -> None:
        self.pressed = threading.Event()
        self.reason = ""

    def press(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.pressed.set()

    def release(self) -> None:
        """For re-arming."""
        self.reason = ""
        self.pressed.clear()
