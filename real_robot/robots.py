"""Robots by configuration: what a robot is, its limits, its driver."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from ebt_policy.config import options
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver
from ebt_policy.real_robot.drivers.replay import Recording, ReplayDriver
from ebt_policy.real_robot.drivers.ros2 import Ros2Driver, Ros2Sim, Topics
from ebt_policy.real_robot.drivers.sim import SimRobot
from ebt_policy.real_robot.loop import WatchdogTimeouts
from ebt_policy.real_robot.safety import Limits, limits_of


@dataclass(frozen=True)
class Robot:
    """The section ``robot`` of a configuration.

    Args:
        name: of the robot.
        driver: its ``name`` and options.
        rate_hz: ticks a second; the rate of the demonstrations.
        episode_s: time limit of an episode.
        action: names of the A numbers of an action.
        limits: see `limits_of`.
        watch: see `WatchdogTimeouts`.
        confirm: whether a person starts each episode.

    Raises:
        SafetyError: limits that are missing or wrong: such a robot is not armed.
    """

    name: str
    driver: dict[str, Any]
    rate_hz: float
    episode_s: float
    action: list[str]
    limits: dict[str, Any] = field(default_factory=dict)
    watch: dict[str, Any] = field(default_factory=dict)
    confirm: bool = True

    def __post_init__(self) -> None:
        for name in ("rate_hz", "episode_s"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"robot.{name} must be positive and finite, got {value}.")
        _ = self.safety, self.timeouts  # wrong ones are told before anything is loaded

    @cached_property
    def safety(self) -> Limits:
        return limits_of(self.limits, self.action)

    @cached_property
    def timeouts(self) -> WatchdogTimeouts:
        return options(WatchdogTimeouts, self.watch, "robot.watch")

    def connect(self, clock: Clock, *, film: bool = False) -> Driver:
        """Its driver, not connected yet.

        Raises:
            ConfigError: an unknown driver, or options that it cannot have.
        """
        given = dict(self.driver)
        name = given.pop("name", None)
        if name == "sim":
            given.setdefault("max_steps", max(1, round(self.rate_hz * self.episode_s)))
            spec = options(EnvSpec, given, "robot.driver")
            return SimRobot(spec, clock, command_s=self.timeouts.command_s, film=film)
        if name == "ros2":
            topics = self.topics
            return (Ros2Sim if topics.simulated else Ros2Driver)(topics, clock)
        if name == "replay":
            return ReplayDriver(options(Recording, given, "robot.driver"), clock)
        raise ConfigError(f"robot.driver.name must be sim, ros2 or replay, got {name}.")

    @cached_property
    def topics(self) -> Topics:
        """Of a robot behind ROS 2."""
        given = {key: value for key, value in self.driver.items() if key != "name"}
        return options(Topics, given, "robot.driver")


def load_robot(name: str, *overrides: str) -> Robot:
    """A robot of ``configs/robot`` by its name, with overrides as on the command line."""
    with initialize_config_module("ebt_policy.configs", version_base="1.3"):
        config = compose("run", [f"robot={name}", *overrides])
    section: Any = OmegaConf.to_container(config.robot, resolve=True)
    return options(Robot, section, "robot")
