"""The state of a run: whether the robot may move, and which changes of state are allowed."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum

from ebt_policy.real_robot.clock import Clock


class State(StrEnum):
    """The states of a run.

    DISARMED: nothing is sent.
    READY: the robot is checked, the policy is warmed up, and the run waits for a start.
    RUNNING: the policy moves the robot.
    HOLD: the robot is slowed down and held; a person may let it continue.
    FAULT: the robot is stopped until a person has inspected and re-armed it.
    """

    DISARMED = "disarmed"
    READY = "ready"
    RUNNING = "running"
    HOLD = "hold"
    FAULT = "fault"


# The states in which the robot stands and a person has to look, with a word for each.
STATE_WORDS = {State.HOLD: "held", State.FAULT: "stopped"}
STOPPED = tuple(STATE_WORDS)
# From -> to. Every state may fault or be disarmed; only `Supervisor.rearm` leaves a fault.
ALLOWED_TRANSITIONS = {
    State.DISARMED: {State.READY, State.FAULT},
    State.READY: {State.RUNNING, State.FAULT, State.DISARMED},
    State.RUNNING: {State.HOLD, State.FAULT, State.DISARMED},
    State.HOLD: {State.RUNNING, State.FAULT, State.DISARMED},
    State.FAULT: set(),
}


@dataclass(frozen=True)
class StateChange:
    """A change of state: when (clock seconds), to which state, and why."""

    time: float
    state: State
    reason: str


class Supervisor:
    """The holder of the state. Its methods may be called from any thread.

    Attributes:
        changes: all changes of state, oldest first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.changes = [StateChange(clock.now(), State.DISARMED, "not armed yet")]

    @property
    def state(self) -> State:
        return self.changes[-1].state

    @property
    def reason(self) -> str:
        return self.changes[-1].reason

    def transition(self, state: State, reason: str) -> bool:
        """Change the state if the transition is allowed, and return whether it was.

        Line breaks in the reason become spaces.
        """
        with self._lock:
            if state not in ALLOWED_TRANSITIONS[self.state]:
                return False
            reason = " ".join(reason.split())
            self.changes.append(StateChange(self._clock.now(), state, reason))
            return True

    def rearm(self) -> bool:
        """Leave a fault after a person has inspected the robot; it must be checked again.

        Returns:
            Whether there was a fault to leave.
        """
        with self._lock:
            if self.state is not State.FAULT:
                return False
            self.changes.append(StateChange(self._clock.now(), State.DISARMED, "re-armed"))
            return True


class EStop:
    """The emergency stop. It may be pressed from any thread and from a signal handler.

    Attributes:
        pressed: the event that wakes whoever waits for the stop.
        reason: who pressed it first.
    """

    def __init__(self) -> None:
        self.pressed = threading.Event()
        self.reason = ""

    def press(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.pressed.set()

    def release(self) -> None:
        """Release the stop, before the robot is re-armed."""
        self.reason = ""
        self.pressed.clear()
