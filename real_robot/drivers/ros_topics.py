"""The options of a ROS 2 robot: its observed and commanded topics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ebt_policy.config import options
from ebt_policy.data import push_t
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.drivers.ros_messages import CommandTopic, FrameTransform, ObservedTopic
from ebt_policy.registry import Registry

# Functions that map the observed values (n,) to the "obs" (Do,) of the policy.
OBSERVATION_TRANSFORMS: Registry[Callable[[np.ndarray], np.ndarray]] = Registry(
    "robot.driver.transform", "ebt_policy.observation_transforms"
)
# Agent, block and angle (5,) -> keypoints of the block and agent (20,).
OBSERVATION_TRANSFORMS.register("push_t_keypoints")(push_t.observation)
SECTION = "robot.driver"
# Names of the other columns of a recording (see `recorder.Layout`).
RESERVED_NAMES = (
    *("obs", "state", "position", "wanted", "action", "clamped", "sent", "mode", "tick", "time"),
    *("late", "age", "latency", "energy", "surprise", "cost", "human", "steps"),
)


class SimNodeStatus(NamedTuple):
    """The state of an episode of `sim_node`.

    Args:
        seed: seed of the episode.
        score: score of the episode until now.
        solved: 1 if the task is solved, else 0.
        reset_number: number of the last reset.
        reset_s: ROS time of the last reset, seconds.
    """

    seed: float = -1.0
    score: float = 0.0
    solved: float = 0.0
    reset_number: float = 0.0
    reset_s: float = 0.0


@dataclass(frozen=True)
class SimNodeOptions:
    """The section ``robot.driver.simulates``: the robot that `sim_node` simulates.

    Args:
        env: options of `EnvSpec`.
        parts: name of an observed topic -> indices into the environment's state. Without an entry,
            the topic of the position has the measured position (A,).
        publish_hz: rate of all topics.
        reset: topic (Float64MultiArray) with the seed and the number of a reset.
        score: topic (Float64MultiArray) with a `SimNodeStatus`.

    Raises:
        ConfigError: `publish_hz` is not positive and finite.
    """

    env: dict[str, Any]
    parts: dict[str, list[int]]
    publish_hz: float
    reset: str
    score: str

    def __post_init__(self) -> None:
        if not 0 < self.publish_hz < math.inf:
            raise ConfigError(
                f"{SECTION}.simulates.publish_hz must be positive and finite, got "
                f"{self.publish_hz}."
            )


@dataclass(frozen=True)
class RosTopics:
    """The options of ``robot.driver`` with ``name: ros2``.

    Args:
        observe: name -> options of `ObservedTopic`. An image topic is the camera of that name.
            Topics that are not in ``obs`` are recorded under their names.
        obs: names of the observed topics that form "obs", in order.
        position: name of the observed topic that measures the robot's position.
        command: options of `CommandTopic`.
        transform: a name in `OBSERVATION_TRANSFORMS`, applied to "obs".
        estop: topic of the emergency stop (Bool; true stops the robot).
        heartbeat: topic (Empty) that gets a message at each tick of the loop.
        stamps: "header" for the times in the messages, or "arrival" if the robot has another clock.
        connect_s: longest time to wait for the first messages, s.
        simulates: options of `SimNodeOptions`, for a robot that `sim_node` simulates.

    Attributes:
        observed, commanded, simulated: the parsed `observe`, `command` and `simulates`.

    Raises:
        ConfigError: an option is unknown, missing or invalid.
    """

    observe: dict[str, Any]
    obs: list[str]
    position: str
    command: dict[str, Any]
    transform: str | None = None
    estop: str = "/emergency_stop"
    heartbeat: str = "/policy/heartbeat"
    stamps: str = "header"
    connect_s: float = 10.0
    simulates: dict[str, Any] | None = None
    observed: dict[str, ObservedTopic] = field(init=False)
    commanded: CommandTopic = field(init=False)
    simulated: SimNodeOptions | None = field(init=False)

    def __post_init__(self) -> None:
        observed = {
            name: _parse_observed(section, f"{SECTION}.observe.{name}")
            for name, section in self.observe.items()
        }
        commanded = options(CommandTopic, self.command, f"{SECTION}.command")
        simulated = None
        if self.simulates:
            simulated = options(SimNodeOptions, self.simulates, f"{SECTION}.simulates")
        object.__setattr__(self, "observed", observed)
        object.__setattr__(self, "commanded", commanded)
        object.__setattr__(self, "simulated", simulated)
        for name in (*self.obs, self.position):
            if name not in observed:
                raise ConfigError(f"{SECTION}.observe has no {name}; it has {', '.join(observed)}.")
        if reserved := sorted(set(self._others) & set(RESERVED_NAMES)):
            raise ConfigError(
                f"{SECTION}.observe.{reserved[0]}: recordings use this name; give the topic "
                "another one."
            )
        if self.transform is not None:
            OBSERVATION_TRANSFORMS.get(self.transform)
        if not 0 < self.connect_s < math.inf:
            raise ConfigError(
                f"{SECTION}.connect_s must be positive and finite, got {self.connect_s}."
            )
        if self.stamps not in ("header", "arrival"):
            raise ConfigError(f"{SECTION}.stamps must be header or arrival, got {self.stamps}.")

    def observation_values(self, readings: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the values of an `Observation`; "state" is "obs" before the transform.

        Cameras and topics that are not in "obs" have their own names.

        Args:
            readings: name of an observed topic -> result of `ObservedTopic.read`.
        """
        values, low_dim = {}, np.concatenate([readings[name] for name in self.obs])
        if self.transform is not None:
            values["state"] = low_dim
            low_dim = OBSERVATION_TRANSFORMS.get(self.transform)(low_dim)
        values["obs"] = np.asarray(low_dim, dtype=np.float32)
        return values | {name: readings[name] for name in self._others}

    @property
    def value_names(self) -> dict[str, list[str]]:
        """The names of the entries of each observed value that has names.

        Entries of a pose also have the name of the topic, such as "cube.x".
        """
        names = {
            name: topic.names or [f"{name}.{entry}" for entry in topic.fields]
            for name, topic in self.observed.items()
            if not topic.is_image
        }
        values = {name: names[name] for name in self._others if name in names}
        if self.transform is None:
            values["obs"] = [entry for name in self.obs for entry in names[name]]
        return values

    @cached_property
    def _others(self) -> list[str]:
        """The observed topics that are neither part of "obs" nor the position."""
        return [name for name in self.observed if name not in (*self.obs, self.position)]


def parse_topics(driver: dict[str, Any]) -> RosTopics | None:
    """Parse the section ``robot.driver``; None for a robot with another driver.

    Raises:
        ConfigError: an option is unknown, missing or invalid.
    """
    if driver.get("name") != "ros2":
        return None
    return options(RosTopics, {k: v for k, v in driver.items() if k != "name"}, SECTION)


def _parse_observed(section: dict[str, Any], section_name: str) -> ObservedTopic:
    if section.get("frame") is not None:
        frame = options(FrameTransform, section["frame"], f"{section_name}.frame")
        section = {**section, "frame": frame}
    return options(ObservedTopic, dict(section), section_name)
