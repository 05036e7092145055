"""The section ``robot`` of a run: description, limits, timeouts and driver of a robot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ebt_policy.cli.composition import compose_config
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.policies.costs import Cost, build_costs
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers import ROBOT_DRIVERS
from ebt_policy.real_robot.drivers.base import Driver, DriverContext
from ebt_policy.real_robot.limits import Limits, parse_limits
from ebt_policy.real_robot.watchdogs import WatchdogTimeouts


@dataclass(frozen=True)
class Robot:
    """The description of a robot, from ``configs/robot``.

    Args:
        name: name of the robot.
        driver: ``name`` is one of `ROBOT_DRIVERS`; the other entries are options of the driver.
        rate_hz: ticks per second, the rate of the demonstrations.
        episode_s: time limit of an episode, s.
        action: names of the A entries of an action.
        limits: see `parse_limits`.
        watch: see `WatchdogTimeouts`.
        confirm: whether a person starts each episode with a key. A robot without it also resumes by
            itself when a lost policy server is back.
        costs: costs of the predicted chunks, see `build_costs`.

    Raises:
        ConfigError: an option is invalid.
        SafetyError: a limit is missing or invalid; such a robot is not armed.
    """

    name: str
    driver: dict[str, Any]
    rate_hz: float
    episode_s: float
    action: list[str]
    limits: dict[str, Any] = field(default_factory=dict)
    watch: dict[str, Any] = field(default_factory=dict)
    confirm: bool = True
    costs: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("rate_hz", "episode_s"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"robot.{name} must be positive and finite, got {value}.")
        # Their errors are reported before anything is loaded.
        _ = self.safety, self.timeouts, self.chunk_costs

    @cached_property
    def safety(self) -> Limits:
        """The parsed section `limits`."""
        return parse_limits(self.limits, self.action)

    @cached_property
    def timeouts(self) -> WatchdogTimeouts:
        """The parsed section `watch`."""
        return options(WatchdogTimeouts, self.watch, "robot.watch")

    @cached_property
    def chunk_costs(self) -> list[Cost]:
        """The costs of the section `costs`."""
        return build_costs(self.costs, "robot.costs")

    def make_driver(
        self, clock: Clock, *, tick_s: float | None = None, render: bool = False
    ) -> Driver:
        """Build the driver of the robot, without connecting to it.

        Args:
            clock: clock of the control loop.
            tick_s: see `DriverContext`; None for 1 / `rate_hz`.
            render: see `DriverContext`.

        Raises:
            ConfigError: the driver is unknown, or one of its options is invalid.
        """
        driver = ROBOT_DRIVERS.get(self.driver.get("name"))
        section = {key: value for key, value in self.driver.items() if key != "name"}
        context = DriverContext(
            clock, self.rate_hz, self.episode_s, self.timeouts.command_s,
            1 / self.rate_hz if tick_s is None else tick_s, self.safety, render,
        )  # fmt: skip
        return driver.from_config(section, context)


def load_robot(name: str, *overrides: str) -> Robot:
    """Load a robot of ``configs/robot`` by its name.

    Args:
        name: name of the robot's file, such as ``sim_push_t``.
        overrides: options as on the command line, such as ``robot.episode_s=10``.

    Raises:
        ConfigError: the robot or an override is unknown.
    """
    config = compose_config("run", [f"robot={name}", *overrides])
    return options(Robot, config["robot"], "robot")
