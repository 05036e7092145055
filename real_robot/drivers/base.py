"""What the control loop asks of a robot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class DriverError(RuntimeError):
    """The robot cannot be reached any more; the message says what was lost."""


@dataclass(frozen=True)
class Observation:
    """What a robot measured.

    Attributes:
        values: "obs" (Do,) float32, under the name of each camera (H, W, 3) uint8, and what else is
            to be recorded ("state", which tells a simulated scene).
        position: (A,) where the robot is, as an action that would keep it there; what nothing
            measures (say, a gripper's force) as it was last sent.
        stamp: when, in seconds of the loop's clock.
    """

    values: dict[str, np.ndarray]
    position: np.ndarray
    stamp: float


class Driver(ABC):
    """A robot, or what stands in for one.

    A driver has a watchdog of its own: when no command came for the time that its robot allows, it
    slows the robot down and holds it, since whoever sent commands may have died.

    Attributes:
        press: what a driver calls when the robot's own emergency stop is pressed, with its name.
        seconds: how long an episode lasts at most, None for a robot without an end of its own.
    """

    press: Callable[[str], None] = staticmethod(lambda reason: None)
    seconds: float | None = None

    @abstractmethod
    def connect(self) -> None:
        """Reach the robot; it does not move.

        Raises:
            DriverError: it cannot be reached.
        """

    def check_alone(self) -> None:  # noqa: B027
        """Check, before the first command, that nobody else commands the robot.

        Raises:
            DriverError: another program does.
        """

    def reset(self, seed: int) -> None:  # noqa: B027
        """An episode begins; a simulated robot starts that of a seed (see `EnvSpec`), at rest.

        Raises:
            DriverError: it cannot.
        """

    @abstractmethod
    def read(self) -> Observation | None:
        """The newest observation, at once; None before the first.

        Raises:
            DriverError: the robot is gone. One that only stopped measuring gives an old stamp.
        """

    @abstractmethod
    def send(self, command: np.ndarray, due: float) -> None:
        """Go to a place (A,), to be there at the time ``due`` (clock seconds).

        Raises:
            DriverError: the robot is gone.
        """

    @abstractmethod
    def stop(self) -> None:
        """Slow down and hold, now; nothing that was sent before counts any more.

        Called from any thread, again and again, also before `connect` and on a robot that is gone:
        it never raises.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the robot go, held; again and again, and it never raises."""


class Scored(Driver):
    """A simulated robot: it knows its task."""

    @property
    @abstractmethod
    def score(self) -> float:
        """The best reward of the episode so far."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether the task is solved."""
