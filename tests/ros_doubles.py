"""A replacement for ROS 2 communication: messages are delivered at once, on a simulated clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.drivers import ros2
from ebt_policy.real_robot.drivers.ros2 import Ros2Driver
from ebt_policy.real_robot.drivers.ros_node import message_class
from ebt_policy.real_robot.robots import Robot


class FakeRos:
    """All topics, without another program.

    Args:
        clock: clock of the messages and of the driver.

    Attributes:
        published: topic -> messages that the driver has published, oldest first.
    """

    def __init__(self, clock: SimulatedClock) -> None:
        self.clock, self.node = clock, self
        self.published: dict[str, list[Any]] = defaultdict(list)
        self._callbacks: dict[str, list[Callable[[Any], None]]] = defaultdict(list)

    def create_subscription(
        self, _kind: type, topic: str, callback: Callable[[Any], None], _qos: Any, **_: Any
    ) -> None:
        self._callbacks[topic].append(callback)

    def create_publisher(self, _kind: type, topic: str, _qos: Any) -> Any:
        published = self.published[topic]

        class Publisher:
            publish = published.append

        return Publisher

    def count_publishers(self, _topic: str) -> int:
        return 1

    def start(self) -> None:
        pass

    def seconds(self) -> float:
        return self.clock.now()

    def close(self) -> None:
        pass

    def deliver(self, topic: str, message: Any) -> None:
        """Deliver a message to all subscriptions of the driver."""
        for callback in self._callbacks[topic]:
            callback(message)

    def deliver_joints(self, topic: str, values: dict[str, float]) -> None:
        """Deliver the positions of joints, measured now."""
        message = message_class("JointState")()
        message.name, message.position = list(values), list(values.values())
        message.header.stamp = self.stamp()
        self.deliver(topic, message)

    def stamp(self) -> Any:
        """Return the current time as in the header of a message."""
        stamp = message_class("JointState")().header.stamp
        stamp.sec, stamp.nanosec = divmod(round(self.clock.now() * 1e9), 10**9)
        return stamp


def make_ros2_driver(
    robot: Robot, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> tuple[Ros2Driver, FakeRos]:
    """Return a driver, which is not connected, and the topics that replace its node."""
    fake = FakeRos(clock)
    monkeypatch.setattr(ros2, "RosNode", lambda _name: fake)
    driver = robot.make_driver(clock)
    assert isinstance(driver, Ros2Driver)
    return driver, fake
