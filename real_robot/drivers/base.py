"""The interface of a robot to the control loop, and the registry of drivers.

A driver of your own is a class with a name, in a module that ``--module`` imports or that an
installed plug-in declares as an entry point of the group ``ebt_policy.robots``::

    @ROBOT_DRIVERS.register("my_arm")
    class MyArm(Driver):
        def __init__(self, context: DriverContext, port: str) -> None: ...

A robot's configuration then says ``driver: {name: my_arm, port: /dev/ttyUSB0}``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ebt_policy.config import options
from ebt_policy.real_robot.clock import Clock
from ebt_policy.registry import Registry


@dataclass(frozen=True)
class DriverContext:
    """What every driver gets besides its own options.

    Args:
        clock: the loop's.
        rate_hz: ticks per second.
        episode_s: time limit of an episode.
        command_s: time without a command after which the driver must hold the robot.
        render: whether frames of a simulated robot will be asked for (see `Renderable`).
    """

    clock: Clock
    rate_hz: float
    episode_s: float
    command_s: float
    render: bool = False


@dataclass(frozen=True)
class Observation:
    """What a robot measured.

    Attributes:
        values: "obs" (Do,) float32, under the name of each camera (H, W, 3) uint8, and what else
            shall be recorded ("state", which describes a simulated scene).
        position: (A,) the measured position, as an action that would keep the robot there; what
            nothing measures (for example a gripper's force) as it was last sent.
        stamp: when it was measured, clock seconds.
    """

    values: dict[str, np.ndarray]
    position: np.ndarray
    stamp: float


class Driver(ABC):
    """A robot, or what stands in for one.

    A driver has a watchdog of its own: when no command came for `DriverContext.command_s`, it slows
    the robot down and holds it, since the program that sent commands may have died.

    Attributes:
        press: call it with a name when the robot's own emergency stop is pressed.
        seconds: the longest possible episode, None for a robot that has no end of its own.
    """

    press: Callable[[str], None] = staticmethod(lambda reason: None)
    seconds: float | None = None

    @classmethod
    def from_config(cls, section: dict[str, Any], context: DriverContext) -> Driver:
        """Return a driver from the options of ``robot.driver``, not connected yet.

        By default these are the parameters of the class after the first one, `context`.

        Args:
            section: the options, without ``name``.

        Raises:
            ConfigError: an option is unknown, missing or has a wrong type or value.
        """
        return options(partial(cls, context), section, "robot.driver")

    @abstractmethod
    def connect(self) -> None:
        """Connect to the robot; it does not move.

        Raises:
            DriverError: it cannot be reached.
        """

    def check_exclusive(self) -> None:  # noqa: B027
        """Check, before the first command, that no other program commands the robot.

        Raises:
            DriverError: another program does.
        """

    def reset(self, seed: int) -> None:  # noqa: B027
        """Begin an episode; a simulated robot starts that of a seed (see `EnvSpec`), at rest.

        Raises:
            DriverError: it cannot.
        """

    @abstractmethod
    def read(self) -> Observation | None:
        """Return the newest observation without waiting; None before the first.

        Raises:
            DriverError: the robot is gone. A robot that only stopped measuring has an old stamp.
        """

    @abstractmethod
    def send(self, command: np.ndarray, due: float) -> None:
        """Send the robot to a position (A,), to be there at the time `due` (clock seconds).

        Raises:
            DriverError: the robot is gone.
        """

    @abstractmethod
    def stop(self) -> None:
        """Slow down and hold, now; commands that were sent before do not count any more.

        It may be called from any thread, repeatedly, before `connect` and after the robot is gone.
        It never raises.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect from the robot, which is held. May be called repeatedly; never raises."""


class SimulatedDriver(Driver):
    """A simulated robot, which knows its task."""

    @property
    @abstractmethod
    def score(self) -> float:
        """The best reward of the episode so far."""

    @property
    @abstractmethod
    def solved(self) -> bool:
        """Whether the task is solved."""


@runtime_checkable
class Renderable(Protocol):
    """A driver that draws its scene, for videos and teleoperation."""

    def render(self) -> np.ndarray:
        """Return a frame of the current scene, (H, W, 3) uint8."""
        ...


ROBOT_DRIVERS: Registry[type[Driver]] = Registry("robot.driver.name", "ebt_policy.robots")
