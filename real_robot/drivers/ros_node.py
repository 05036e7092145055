"""A ROS 2 node that spins in its own thread, message classes and quality of service.

rclpy may come from a ROS 2 installation or from PyPI (`pip install 'ebt_policy[ros]'`). It is
imported only when a robot is connected.
"""

from __future__ import annotations

import importlib
import threading
from enum import Enum, auto
from typing import Any

from ebt_policy.real_robot.errors import DriverError

MESSAGE_PACKAGES = {
    "JointState": "sensor_msgs", "Image": "sensor_msgs", "CompressedImage": "sensor_msgs",
    "PoseStamped": "geometry_msgs", "TwistStamped": "geometry_msgs",
    "JointTrajectory": "trajectory_msgs", "JointTrajectoryPoint": "trajectory_msgs",
    "Float64MultiArray": "std_msgs", "Bool": "std_msgs", "Empty": "std_msgs",
}  # fmt: skip
NOT_INSTALLED = (
    "ROS 2 is not installed: source a ROS 2 installation, or pip install 'ebt_policy[ros]' "
    "(Linux x86-64, Python 3.11 to 3.13)."
)


def message_class(name: str) -> Any:
    """Return the message class with a name of `MESSAGE_PACKAGES`."""
    return getattr(importlib.import_module(f"{MESSAGE_PACKAGES[name]}.msg"), name)


class Channel(Enum):
    """The kind of a topic, which determines its quality of service.

    SENSOR: best effort, newest message only. A repeated message would be too late, and a
        best-effort subscription matches every publisher.
    COMMAND: reliable, newest message only. A lost command would cause a jerk, and an old one is
        useless.
    STOP: reliable and volatile, which matches every reliable publisher.
    LATCHED_STOP: reliable and transient local. A stop that was pressed before this program started
        is received if its publisher keeps the message.
    """

    SENSOR = auto()
    COMMAND = auto()
    STOP = auto()
    LATCHED_STOP = auto()


def qos_profile(channel: Channel) -> Any:
    """Return the rclpy `QoSProfile` of a channel."""
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    best_effort, latched = channel is Channel.SENSOR, channel is Channel.LATCHED_STOP
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=(ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE),
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


class RosNode:
    """A node that spins in its own thread.

    Args:
        name: name of the node.

    Raises:
        DriverError: ROS 2 is not installed.
    """

    def __init__(self, name: str) -> None:
        try:
            rclpy: Any = importlib.import_module("rclpy")
            executors: Any = importlib.import_module("rclpy.executors")
        except ImportError as error:
            raise DriverError(NOT_INSTALLED) from error
        self._context = rclpy.Context()
        self._context.init()
        self.node = rclpy.create_node(name, context=self._context)
        self._executor = executors.SingleThreadedExecutor(context=self._context)
        self._shutdown_error = executors.ExternalShutdownException
        self._executor.add_node(self.node)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True, name=name)

    def start(self) -> None:
        """Start spinning."""
        self._thread.start()

    def _spin(self) -> None:
        while self._context.ok() and not self._ended.is_set():
            try:
                self._executor.spin_once(timeout_sec=0.1)
            except self._shutdown_error:
                return
            except Exception as error:  # The other callbacks, such as the emergency stop, go on.
                self.node.get_logger().error(
                    f"a message was not processed ({type(error).__name__}: {error})",
                    throttle_duration_sec=1.0,
                )

    def seconds(self) -> float:
        """Return the current ROS time, s."""
        return self.node.get_clock().now().nanoseconds * 1e-9

    def close(self) -> None:
        """Stop spinning and destroy the node."""
        # Callbacks end before the publishers that they use are destroyed.
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)
        self._context.try_shutdown()
        self._executor.shutdown(timeout_sec=0.0)
        self.node.destroy_node()
