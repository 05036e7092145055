"""The state of a run, which determines whether the robot may move, and its allowed changes."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum

from ebt_policy.real_robot.clock import Clock


class State(StrEnum):
    """The states of a run.

    DISARMED: no command is sent.
    READY: the robot is checked, the policy is warmed up, and the run waits for its start.
    RUNNING: the action source moves the robot.
    HOLD: the robot is slowed down and held; a person may resume it. A robot without
        ``robot.confirm`` that was held for a lost policy server resumes by itself.
    FAULT: the robot is stopped until a person has inspected and re-armed it.
    """

    DISARMED = "disarmed"
    READY = "ready"
    RUNNING = "running"
    HOLD = "hold"
    FAULT = "fault"


# The states in which the robot does not move and needs a person -> the word for output.
STATE_WORDS = {State.HOLD: "held", State.FAULT: "stopped"}
STOPPED = tuple(STATE_WORDS)
# Current state -> allowed next states. Only `Supervisor.rearm` leaves FAULT.
ALLOWED_TRANSITIONS = {
    State.DISARMED: {State.READY, State.FAULT},
    State.READY: {State.RUNNING, State.FAULT, State.DISARMED},
    State.RUNNING: {State.HOLD, State.FAULT, State.DISARMED},
    State.HOLD: {State.RUNNING, State.FAULT, State.DISARMED},
    State.FAULT: set(),
}


@dataclass(frozen=True)
class StateChange:
    """A change of state: its time (clock seconds), the new state, and the reason."""

    time: float
    state: State
    reason: str


class Supervisor:
    """The state machine of a run. Its methods may be called from any thread.

    Attributes:
        changes: all changes of state, oldest first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.changes = [StateChange(clock.now(), State.DISARMED, "not armed yet")]
        self._person_holds = False

    @property
    def state(self) -> State:
        return self.changes[-1].state

    @property
    def reason(self) -> str:
        return self.changes[-1].reason

    def transition(self, state: State, reason: str) -> bool:
        """Change the state if the transition is allowed, and return whether it was.

        Line breaks in the reason are replaced by spaces.
        """
        with self._lock:
            if state not in ALLOWED_TRANSITIONS[self.state]:
                return False
            self._change(state, reason)
            return True

    def hold(self) -> None:
        """Hold the robot for a person, so that it does not resume by itself."""
        with self._lock:
            self._person_holds = True
            if State.HOLD in ALLOWED_TRANSITIONS[self.state]:
                self._change(State.HOLD, "held by a person")

    def resume_by_itself(self, hold: StateChange, reason: str) -> bool:
        """Change from HOLD to RUNNING without a person, and return whether the state changed.

        Args:
            hold: the change to HOLD whose cause has ended. Nothing happens if the robot was held
                again since then, or if a person holds it.
            reason: reason of the change.
        """
        with self._lock:
            if self.changes[-1] is not hold or self._person_holds:
                return False
            self._change(State.RUNNING, reason)
            return True

    def _change(self, state: State, reason: str) -> None:
        self._person_holds = self._person_holds and state is State.HOLD
        self.changes.append(StateChange(self._clock.now(), state, " ".join(reason.split())))

    def rearm(self) -> bool:
        """Change from FAULT to DISARMED, after a person has inspected the robot.

        Returns:
            Whether the state was FAULT.
        """
        with self._lock:
            if self.state is not State.FAULT:
                return False
            self._change(State.DISARMED, "re-armed")
            return True


class EStop:
    """The emergency stop. It may be pressed from any thread.

    A signal handler must not press it, because it waits for a lock that the interrupted thread may
    hold.

    Attributes:
        pressed: event that is set while the stop is pressed.
        reason: reason of the first press, for example "space bar".
    """

    def __init__(self) -> None:
        self.pressed = threading.Event()
        self.reason = ""

    def press(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.pressed.set()

    def release(self) -> None:
        """Release the stop when the robot is re-armed."""
        self.reason = ""
        self.pressed.clear()
