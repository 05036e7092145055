"""Drivers of robots with ROS 2 topics, real and simulated."""

from __future__ import annotations

import importlib
import secrets
import threading
from functools import cached_property
from typing import Any

import numpy as np

from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.drivers.base import (
    ROBOT_DRIVERS,
    Driver,
    DriverContext,
    Observation,
    SimulatedDriver,
)
from ebt_policy.real_robot.drivers.ros_messages import ObservedTopic
from ebt_policy.real_robot.drivers.ros_node import Channel, RosNode, message_class, qos_profile
from ebt_policy.real_robot.drivers.ros_topics import RosTopics, SimNodeStatus
from ebt_policy.real_robot.errors import DriverError, MessageError


@ROBOT_DRIVERS.register("ros2")
class Ros2Driver(Driver):
    """A driver of a robot with ROS 2 topics.

    Args:
        topics: see `RosTopics`.
        context: arguments of every driver.

    Raises:
        ConfigError: the topic of commands does not fit the robot's actions.
    """

    def __init__(self, topics: RosTopics, context: DriverContext) -> None:
        self.topics, self._clock, self._command_s = topics, context.clock, context.command_s
        self._tracker = topics.commanded.make_tracker(
            context.limits.velocity, context.tick_s, context.command_s
        )
        self._ros: RosNode | None = None
        self._lock = threading.Lock()
        self._newest: dict[str, tuple[np.ndarray, float]] = {}  # topic -> reading, stamp
        self._rejection = ""
        self._is_estop_pressed = False  # the newest message of the emergency stop
        # The last command, None if there is none, or if the robot was stopped at it.
        self._last_command: np.ndarray | None = None
        self.value_names = topics.value_names

    @classmethod
    def from_config(cls, section: dict[str, Any], context: DriverContext) -> Ros2Driver:
        topics = options(RosTopics, section, "robot.driver")
        return (Ros2SimDriver if topics.simulated else Ros2Driver)(topics, context)

    def connect(self) -> None:
        if self._ros is None:
            self._ros = ros = RosNode("ebt_policy")
            for name, topic in self.topics.observed.items():
                self._subscribe(name, topic)
            events: Any = importlib.import_module("rclpy.event_handler")
            quiet = events.SubscriptionEventCallbacks(use_default_callbacks=False)
            # One of the two subscriptions may not match the publisher; the warning is suppressed.
            for channel in (Channel.STOP, Channel.LATCHED_STOP):
                ros.node.create_subscription(
                    message_class("Bool"), self.topics.estop, self._on_estop, qos_profile(channel),
                    event_callbacks=quiet,
                )  # fmt: skip
            commanded, qos = self.topics.commanded, qos_profile(Channel.COMMAND)
            self._commands = ros.node.create_publisher(
                message_class(commanded.type), commanded.topic, qos
            )
            self._heartbeat = ros.node.create_publisher(
                message_class("Empty"), self.topics.heartbeat, qos
            )
            ros.start()
        self._await_all_topics()

    def check_exclusive(self) -> None:
        topic = self.topics.commanded.topic
        if self._ros is not None and self._ros.node.count_publishers(topic) > 1:
            raise DriverError(f"another program commands the robot on {topic}; end it first.")

    def check_estop(self) -> None:
        if self._is_estop_pressed:
            raise DriverError(
                f"the emergency stop is pressed: the newest message on {self.topics.estop} is "
                "true; release it, so that false is published, then start or re-arm the robot."
            )

    def _await_all_topics(self) -> None:
        """Wait until every topic has had a valid message."""
        end = self._clock.now() + self.topics.connect_s
        while silent := [n for n in self.topics.observed if n not in self._newest]:
            if self._clock.now() > end:
                topics = ", ".join(self.topics.observed[name].topic for name in silent)
                detail = f" ({self._rejection})" if self._rejection else ""
                raise DriverError(
                    f"no usable message came on {topics} within "
                    f"robot.driver.connect_s={self.topics.connect_s:g}{detail}; check that the "
                    "robot is running, with the same ROS_DOMAIN_ID."
                )
            self._clock.wait_until(self._clock.now() + 0.02)

    def _subscribe(self, name: str, topic: ObservedTopic) -> None:
        assert self._ros is not None

        def on_message(message: Any) -> None:
            assert self._ros is not None
            now = self._clock.now()
            stamp = now
            try:  # The loop holds the robot when the last accepted message is too old.
                if not self._is_current(message):
                    return
                if self.topics.stamps == "header":
                    stamp = min(now, now - (self._ros.seconds() - _header_s(message)))
                reading = topic.read(message)
            except MessageError as error:
                self._rejection = str(error)
                return
            except Exception as error:  # A message may have any content.
                self._rejection = f"{topic.topic}: {type(error).__name__}: {error}"
                return
            with self._lock:
                self._newest[name] = (reading, stamp)

        self._ros.node.create_subscription(
            message_class(topic.type), topic.topic, on_message, qos_profile(Channel.SENSOR)
        )

    def _is_current(self, message: Any) -> bool:
        """Return whether an observed message may be used."""
        return True

    def _on_estop(self, message: Any) -> None:
        self._is_estop_pressed = message.data
        if message.data:
            self.press(f"topic {self.topics.estop}")

    def read(self) -> Observation | None:
        if self._ros is None:
            raise DriverError("the robot is not connected.")
        self._heartbeat.publish(message_class("Empty")())
        with self._lock:
            newest = dict(self._newest)
        if len(newest) < len(self.topics.observed):
            return None
        readings = {name: reading for name, (reading, _) in newest.items()}
        values = self.topics.observation_values(readings)
        stamp = min(stamp for _, stamp in newest.values())  # time of the oldest message
        return Observation(values, readings[self.topics.position], stamp)

    def send(self, command: np.ndarray, due: float) -> None:
        if self._ros is None:
            raise DriverError("the robot is not connected.")
        now, commanded = self._clock.now(), self.topics.commanded
        with self._lock:
            self._last_command = command
            if self._tracker is None:
                message = commanded.message(command, due - now, message_class)
            else:
                if self.topics.position in self._newest:
                    position, stamp = self._newest[self.topics.position]
                    self._tracker.measure(commanded.to_ros(position), stamp)
                twist = self._tracker.twist(commanded.to_ros(command), due, now)
                message = commanded.twist_message(twist, message_class)
        self._publish(message)

    def _publish(self, message: Any) -> None:
        try:
            self._commands.publish(message)
        except Exception as error:  # rclpy raises different errors if its context has ended.
            raise DriverError(f"the command could not be published ({error}).") from error

    def stop(self) -> None:
        commanded = self.topics.commanded
        with self._lock:
            goal, newest = self._last_command, self._newest.get(self.topics.position)
            if self._ros is None or goal is None:
                return  # Without an own command, another program controls the robot.
            if self._tracker is not None:
                self._tracker.restart()
            elif newest is not None and self._clock.now() - newest[1] <= self._command_s:
                goal = newest[0]
            else:  # The robot must not go back to an old position.
                self._last_command = None  # A person may move the robot after this stop.
        try:
            self._publish(
                commanded.message(goal, 0.5, message_class)
                if self._tracker is None
                else commanded.twist_message(np.zeros(6), message_class)
            )
        except (DriverError, ConfigError):
            return  # The robot's own watchdog holds it.

    def close(self) -> None:
        if self._ros is not None:
            self.stop()
            self._ros.close()
            self._ros = None


class Ros2SimDriver(Ros2Driver, SimulatedDriver):
    """A driver of a robot that `sim_node` simulates, with topics for resets and its score."""

    _status = SimNodeStatus()
    _resets = 0

    @cached_property
    def _first_reset(self) -> float:
        """The number before the first reset; it differs between programs."""
        return float(secrets.randbits(50))  # A double represents such integers exactly.

    def connect(self) -> None:
        first = self._ros is None
        super().connect()
        if first:
            assert self._ros is not None and self.topics.simulated is not None
            array, qos = message_class("Float64MultiArray"), qos_profile(Channel.COMMAND)
            self._ros.node.create_subscription(
                array, self.topics.simulated.score, self._on_score, qos
            )
            self._reset = self._ros.node.create_publisher(array, self.topics.simulated.reset, qos)

    def _on_score(self, message: Any) -> None:
        self._status = SimNodeStatus(*message.data)

    def _is_current(self, message: Any) -> bool:
        return _header_s(message) >= self._status.reset_s

    def reset(self, seed: int) -> None:
        end = self._clock.now() + self.topics.connect_s
        self._resets += 1
        message = message_class("Float64MultiArray")()
        message.data = [float(seed), self._first_reset + self._resets]
        while self._status.reset_number != message.data[1]:
            if self._clock.now() > end:
                raise DriverError(
                    "the simulated robot did not reset within "
                    f"robot.driver.connect_s={self.topics.connect_s:g}; check that sim_node is "
                    "running."
                )
            self._reset.publish(message)
            self._clock.wait_until(self._clock.now() + 0.05)
        # Messages from before the reset may still arrive; `_is_current` rejects them.
        with self._lock:
            self._newest.clear()
            self._last_command = None
        self._await_all_topics()  # All observations are now later than the reset.

    @property
    def score(self) -> float:
        return self._status.score

    @property
    def solved(self) -> bool:
        return self._status.solved > 0


def _header_s(message: Any) -> float:
    """Return the ROS time at which a message was stamped, seconds."""
    return message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec
