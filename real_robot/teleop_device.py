"""The interface between a person's input device and the control loop, and the registry of devices.

A device of your own, such as a leader arm, is a class that is registered under a name. Its module
is imported by ``--module`` or declared by an installed plug-in as an entry point of
``ebt_policy.teleop_devices``::

    @TELEOP_DEVICES.register("leader")
    class Leader(TeleopDevice):
        def __init__(self, context: TeleopContext, port: str) -> None: ...

It is selected with ``"input={name: leader, port: /dev/ttyUSB1}"``, or ``input=leader`` if it has no
options.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.action_source import ActionSource
from ebt_policy.real_robot.drivers.base import Driver
from ebt_policy.real_robot.inference_worker import InferenceWorker
from ebt_policy.real_robot.limits import Limits
from ebt_policy.registry import Registry


@dataclass(frozen=True)
class TeleopContext:
    """The arguments of every device besides its own options.

    Args:
        driver: driver of the robot that the device moves.
        limits: limits of the robot.
        dt: time from tick to tick, s.
        worker: worker of the control loop; devices do not use it.
    """

    driver: Driver
    limits: Limits
    dt: float
    worker: InferenceWorker


class TeleopDevice(ActionSource):
    """An action source by which a person moves the robot.

    `action` returns the position (A,) that the person asks for. The control loop limits it. It must
    not wait for the device. If it raises an error, the robot is stopped.

    Args:
        context: see `TeleopContext`. A device's own options follow it.

    Attributes:
        keep: None until the person ends the episode with the device, then whether it is kept.
        quit: whether the person has ended the run with the device.
    """

    def __init__(self, context: TeleopContext) -> None:
        super().__init__(context.dt, context.worker)
        self.is_human, self.quit = True, False
        self.keep: bool | None = None

    @classmethod
    def from_config(cls, section: dict[str, Any], context: TeleopContext) -> TeleopDevice:
        """Build a device from its options, which are the parameters after `context`.

        Raises:
            ConfigError: an option is unknown, missing or has a wrong type or value, or the device
                is not connected.
        """
        return options(partial(cls, context), section, "input")

    def restart(self) -> None:
        self.keep = None

    def close(self) -> None:  # a device without connection needs nothing
        """Disconnect the device. It never raises an error."""


TELEOP_DEVICES: Registry[type[TeleopDevice]] = Registry("input", "ebt_policy.teleop_devices")
for _name in ("mouse", "keyboard", "gamepad"):
    TELEOP_DEVICES.declare(_name, f"ebt_policy.real_robot.teleop:{_name.capitalize()}")


def build_device(input_option: str | dict[str, Any], context: TeleopContext) -> TeleopDevice:
    """Build the device that the option ``input`` selects.

    Args:
        input_option: name of a device, or ``name`` with its options.
        context: see `TeleopContext`.

    Raises:
        ConfigError: the device is unknown or does not fit the robot; see `TeleopDevice`.
    """
    section = {"name": input_option} if isinstance(input_option, str) else dict(input_option)
    if "name" not in section:
        raise ConfigError(f"input={section} needs a name, such as input={{name: mouse}}.")
    return TELEOP_DEVICES.get(section.pop("name")).from_config(section, context)
