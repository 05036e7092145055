"""The interface between a robot and the control loop, and the registry of drivers.

A driver of your own is a class that is registered under a name. Its module is imported by
``--module`` or declared by an installed plug-in as an entry point of ``ebt_policy.robots``::

    @ROBOT_DRIVERS.register("my_arm")
    class MyArm(Driver):
        def __init__(self, context: DriverContext, port: str) -> None: ...

The configuration of the robot then has ``driver: {name: my_arm, port: /dev/ttyUSB0}``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ebt_policy.config import options
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.limits import Limits
from ebt_policy.registry import Registry


@dataclass(frozen=True)
class DriverContext:
    """The arguments of every driver besides its own options.

    Args:
        clock: clock of the control loop.
        rate_hz: ticks per second.
        episode_s: time limit of an episode, s.
        command_s: time without a command after which the driver must hold the robot, s.
        tick_s: nominal time from one command to the next, s.
        limits: limits that all commands satisfy.
        render: whether a simulated robot must be able to render frames (see `Renderable`).
    """

    clock: Clock
    rate_hz: float
    episode_s: float
    command_s: float
    tick_s: float
    limits: Limits
    render: bool = False


@dataclass(frozen=True)
class Observation:
    """The measurements of a robot at one time.

    Attributes:
        values: "obs" (Do,) float32, for each camera its image (H, W, 3) uint8, and further values
            to record ("state", which describes a simulated scene).
        position: (A,) measured position, as an action that would keep the robot there. An entry
            that is not measured (for example a gripper's force) has its last command.
        stamp: time of the measurement, seconds of `DriverContext.clock`.
    """

    values: dict[str, np.ndarray]
    position: np.ndarray
    stamp: float


class Driver(ABC):
    """The connection to a robot, or a replacement for one.

    A driver has its own watchdog. It slows the robot down and holds it if there is no command for
    `DriverContext.command_s`. If the program is killed, only the robot's own controller can do so.

    Attributes:
        press: function that presses the emergency stop of the run. The driver calls it with a
            reason when the robot's own emergency stop is pressed.
        seconds: duration of the longest possible episode, None if it is not limited.
        value_names: name of an observed value -> names of its entries, as far as they are known.
            Recordings have them. An action is then related to the entry of "obs" of the same name.
    """

    press: Callable[[str], None] = staticmethod(lambda reason: None)
    seconds: float | None = None
    value_names: Mapping[str, Sequence[str]] = MappingProxyType({})

    @classmethod
    def from_config(cls, section: dict[str, Any], context: DriverContext) -> Driver:
        """Build a driver from the options of ``robot.driver``, without connecting to the robot.

        By default, the options are the parameters of the class after the first one, `context`.

        Args:
            section: options of the driver, without ``name``.
            context: arguments that every driver gets.

        Raises:
            ConfigError: an option is unknown, missing or has a wrong type or value.
        """
        return options(partial(cls, context), section, "robot.driver")

    @abstractmethod
    def connect(self) -> None:
        """Connect to the robot, without moving it.

        Raises:
            DriverError: the robot cannot be reached.
        """

    def check_exclusive(self) -> None:  # noqa: B027
        """Check, before the first command, that no other program commands the robot.

        Raises:
            DriverError: another program commands the robot.
        """

    def check_estop(self) -> None:  # noqa: B027
        """Check, before the first command and after re-arming, that the robot may move.

        Raises:
            DriverError: the robot's own emergency stop is still pressed.
        """

    def reset(self, seed: int) -> None:  # noqa: B027
        """Begin an episode.

        Args:
            seed: seed of the initial state of a simulated robot, which starts at rest. Other robots
                ignore it.

        Raises:
            DriverError: the episode cannot begin.
        """

    @abstractmethod
    def read(self) -> Observation | None:
        """Return the newest observation without waiting; None before the first.

        If the robot stops measuring, the observation keeps its old time stamp.

        Raises:
            DriverError: the robot is not connected or cannot be reached. Errors of other types stop
                the robot as well.
        """

    @abstractmethod
    def send(self, command: np.ndarray, due: float) -> None:
        """Command a position (A,) that the robot should reach at the time `due` (clock seconds).

        Raises:
            DriverError: the robot is not connected or cannot be reached. Errors of other types stop
                the robot as well.
            SafetyError: the command must not be sent; the robot is held.
        """

    @abstractmethod
    def stop(self) -> None:
        """Slow the robot down and hold it now; earlier commands are cancelled.

        It never raises an error. It may be called from any thread, repeatedly, before `connect` and
        after the connection is lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Hold the robot and disconnect. It may be called repeatedly and never raises an error."""


class SimulatedDriver(Driver):
    """A driver of a simulated robot, which also has the score of its task."""

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
    """A driver that renders its scene, for videos and teleoperation."""

    def render(self) -> np.ndarray:
        """Return a frame of the current scene, (H, W, 3) uint8."""
        ...


ROBOT_DRIVERS: Registry[type[Driver]] = Registry("robot.driver.name", "ebt_policy.robots")
