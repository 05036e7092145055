"""A robot behind ROS 2 topics, and a simulated one.

rclpy may come from a system's ROS 2 or from the package index (`pip install 'ebt_policy[ros]'`); it
is imported when a robot is connected.

Quality of service: observations are taken best effort, the newest alone, since what is sent again
comes too late; a best-effort subscription matches every publisher. Commands are reliable, the
newest alone: a lost one would be a jerk, an old one is worthless. The emergency stop is reliable,
and subscribed to twice: volatile, which matches every publisher, and transient local, so that a
stop that was pressed before this program started is seen where its publisher keeps it.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ebt_policy.config import options
from ebt_policy.data import push_t
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver, DriverError, Observation, Scored
from ebt_policy.real_robot.drivers.ros_messages import Frame, MessageError, Out, Part

PACKAGES = {
    "JointState": "sensor_msgs", "Image": "sensor_msgs", "CompressedImage": "sensor_msgs",
    "PoseStamped": "geometry_msgs", "TwistStamped": "geometry_msgs",
    "JointTrajectory": "trajectory_msgs", "JointTrajectoryPoint": "trajectory_msgs",
    "Float64MultiArray": "std_msgs", "Bool": "std_msgs", "Empty": "std_msgs",
}  # fmt: skip
TRANSFORMS = {"push_t_keypoints": push_t.observation}  # (5,) agent, block, angle -> (20,)
SETTLE_S = 0.15
MISSING = (
    "ROS 2 is not to be found: source a ROS 2 installation, or pip install 'ebt_policy[ros]' "
    "(Linux x86-64, Python 3.11 to 3.13)."
)


def message_class(name: str) -> Any:
    """A message class by its name."""
    return getattr(importlib.import_module(f"{PACKAGES[name]}.msg"), name)


@dataclass(frozen=True)
class Simulated:
    """What `sim_node` plays.

    Args:
        env: see `EnvSpec`.
        parts: name of an observed part -> entries of the environment's state.
        publish_hz: of all topics.
        reset, score: topics (Float64MultiArray): seed and number of the reset; and seed, score,
            whether the task is solved, and that number.
    """

    env: dict[str, Any]
    parts: dict[str, list[int]]
    publish_hz: float
    reset: str
    score: str

    def __post_init__(self) -> None:
        if not 0 < self.publish_hz < math.inf:
            raise ConfigError(
                "robot.driver.simulates.publish_hz must be positive and finite, got "
                f"{self.publish_hz}."
            )


@dataclass(frozen=True)
class Topics:
    """The options of ``robot.driver`` with ``name: ros2``.

    Args:
        observe: name -> `Part`. Images become cameras of that name.
        obs: names of the parts that "obs" is made of, in order.
        transform: one of `TRANSFORMS`, applied to them.
        position: name of the part that measures where the robot is.
        command: see `Out`.
        estop: topic of the emergency stop (Bool; true stops).
        heartbeat: topic on which each tick of the loop is told (Empty).
        stamps: "header", or "arrival" where the robot's clock is another one.
        connect_s: how long to wait for the first messages.
        simulates: of a robot that `sim_node` simulates, see `Simulated`.
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
    parts: dict[str, Part] = field(init=False)
    out: Out = field(init=False)
    simulated: Simulated | None = field(init=False)

    def __post_init__(self) -> None:
        parts = {}
        for name, section in self.observe.items():
            given = dict(section)
            if given.get("frame") is not None:
                given["frame"] = options(
                    Frame, given["frame"], f"robot.driver.observe.{name}.frame"
                )
            parts[name] = options(Part, given, f"robot.driver.observe.{name}")
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "out", options(Out, self.command, "robot.driver.command"))
        given = self.simulates
        played = given and options(Simulated, given, "robot.driver.simulates")
        object.__setattr__(self, "simulated", played)
        for name in (*self.obs, self.position):
            if name not in parts:
                raise ConfigError(
                    f"robot.driver: {name} is not observed; there are {', '.join(parts)}."
                )
        if self.transform not in (None, *TRANSFORMS):
            raise ConfigError(f"robot.driver.transform must be one of {', '.join(TRANSFORMS)}.")
        if not 0 < self.connect_s < math.inf:
            raise ConfigError(
                f"robot.driver.connect_s must be positive and finite, got {self.connect_s}."
            )
        if self.stamps not in ("header", "arrival"):
            raise ConfigError(f"robot.driver.stamps must be header or arrival, got {self.stamps}.")


def observed(topics: Topics, read: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values of an `Observation` from what its parts read; "state" is "obs" untransformed."""
    low, values = np.concatenate([read[name] for name in topics.obs]), {}
    if topics.transform is not None:
        values["state"], low = low, TRANSFORMS[topics.transform](low)
    values["obs"] = np.asarray(low, dtype=np.float32)
    return values | {name: read[name] for name, part in topics.parts.items() if part.image}


def quality(kind: str) -> Any:
    """The quality of service of "sensor", "command", "stop" or "kept" (see the module)."""
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    reliable = kind != "sensor"
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=(
            DurabilityPolicy.TRANSIENT_LOCAL if kind == "kept" else DurabilityPolicy.VOLATILE
        ),
    )


class RosNode:
    """A node that spins in a thread of its own.

    Raises:
        DriverError: ROS 2 is not installed.
    """

    def __init__(self, name: str) -> None:
        try:
            rclpy: Any = importlib.import_module("rclpy")
            executors: Any = importlib.import_module("rclpy.executors")
        except ImportError as error:
            raise DriverError(MISSING) from error
        self._context = rclpy.Context()
        self._context.init()
        self.node = rclpy.create_node(name, context=self._context)
        self._executor = executors.SingleThreadedExecutor(context=self._context)
        self._ended = executors.ExternalShutdownException
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True, name=name)

    def start(self) -> None:
        self._thread.start()

    def _spin(self) -> None:
        while self._context.ok():
            with contextlib.suppress(self._ended):
                self._executor.spin_once(timeout_sec=0.1)

    def seconds(self) -> float:
        """Now, in ROS time."""
        return self.node.get_clock().now().nanoseconds * 1e-9

    def close(self) -> None:
        self._context.try_shutdown()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)
        self._executor.shutdown(timeout_sec=0.0)
        self.node.destroy_node()


class Ros2Driver(Driver):
    """A robot behind topics.

    Args:
        topics: which, and how.
        clock: the loop's.
    """

    def __init__(self, topics: Topics, clock: Clock) -> None:
        self.topics, self._clock = topics, clock
        self._ros: RosNode | None = None
        self._lock = threading.Lock()
        self._newest: dict[str, tuple[np.ndarray, float]] = {}
        self._rejected = ""
        self._commands = False  # whether the robot has one of this program's

    def connect(self) -> None:
        if self._ros is None:
            self._ros = ros = RosNode("ebt_policy")
            for name, part in self.topics.parts.items():
                self._subscribe(name, part)
            events: Any = importlib.import_module("rclpy.event_handler")
            quiet = events.SubscriptionEventCallbacks(use_default_callbacks=False)
            for kind in ("stop", "kept"):  # one of them may not match, and need not say so
                ros.node.create_subscription(
                    message_class("Bool"), self.topics.estop, self._stopped, quality(kind),
                    event_callbacks=quiet,
                )  # fmt: skip
            self._out = ros.node.create_publisher(
                message_class(self.topics.out.type), self.topics.out.topic, quality("command")
            )
            self._beat = ros.node.create_publisher(
                message_class("Empty"), self.topics.heartbeat, quality("command")
            )
            ros.start()
        self._await_all()

    def check_alone(self) -> None:
        topic = self.topics.out.topic
        if self._ros is not None and self._ros.node.count_publishers(topic) > 1:
            raise DriverError(f"another program commands the robot on {topic}; end it first.")

    def _await_all(self) -> None:
        """Wait until something usable came on every topic."""
        end = self._clock.now() + self.topics.connect_s
        while silent := [n for n in self.topics.parts if n not in self._newest]:
            if self._clock.now() > end:
                topics = ", ".join(self.topics.parts[name].topic for name in silent)
                why = f" ({self._rejected})" if self._rejected else ""
                raise DriverError(
                    f"nothing usable came on {topics} within {self.topics.connect_s:g} s{why}; is "
                    "the robot running, in the same ROS_DOMAIN_ID?"
                )
            self._clock.wait_until(self._clock.now() + 0.02)

    def _subscribe(self, name: str, part: Part) -> None:
        assert self._ros is not None

        def arrived(message: Any) -> None:
            assert self._ros is not None
            now = self._clock.now()
            stamp = now
            if self.topics.stamps == "header":
                sent = message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec
                stamp = min(now, now - (self._ros.seconds() - sent))
            try:
                value = part.read(message)
            except MessageError as error:  # it grows old, and the loop holds the robot
                self._rejected = str(error)
                return
            with self._lock:
                self._newest[name] = (value, stamp)

        self._ros.node.create_subscription(
            message_class(part.type), part.topic, arrived, quality("sensor")
        )

    def _stopped(self, message: Any) -> None:
        if message.data:
            self.press(f"topic {self.topics.estop}")

    def read(self) -> Observation | None:
        if self._ros is None:
            raise DriverError("the robot is not connected.")
        self._beat.publish(message_class("Empty")())
        with self._lock:
            newest = dict(self._newest)
        if len(newest) < len(self.topics.parts):
            return None
        values = observed(self.topics, {name: value for name, (value, _) in newest.items()})
        stamp = min(stamp for _, stamp in newest.values())  # as old as the oldest of it
        return Observation(values, newest[self.topics.position][0], stamp)

    def send(self, command: np.ndarray, due: float) -> None:
        if self._ros is None:
            raise DriverError("the robot is not connected.")
        with self._lock:
            position = self._newest[self.topics.position][0]
        self._commands = True
        self._publish(command, position, due - self._clock.now())

    def _publish(self, command: np.ndarray, position: np.ndarray, seconds: float) -> None:
        message = self.topics.out.message(command, position, seconds, message_class)
        try:
            self._out.publish(message)
        except Exception as error:  # rclpy has several, for a context that is gone
            raise DriverError(f"the command could not be published ({error}).") from error

    def stop(self) -> None:
        with self._lock:
            newest = self._newest.get(self.topics.position)
        if self._ros is None or newest is None or not self._commands:
            return  # a robot that is only watched is another program's
        try:
            self._publish(newest[0], newest[0], 0.5)
        except (DriverError, ConfigError):
            return  # the robot's own watchdog holds it

    def close(self) -> None:
        if self._ros is not None:
            self.stop()
            self._ros.close()
            self._ros = None


class Ros2Sim(Ros2Driver, Scored):
    """A robot that `sim_node` simulates: it is told to reset, and tells its score."""

    _told = (-1.0, 0.0, 0.0, 0.0)  # seed, score, whether it is solved, number of the reset
    _resets = 0

    @cached_property
    def _token(self) -> float:
        return float(int(self._clock.now()) * 1000)  # apart from those of another program

    def connect(self) -> None:
        first = self._ros is None
        super().connect()
        if first:
            assert self._ros is not None and self.topics.simulated is not None
            kind = message_class("Float64MultiArray")
            self._ros.node.create_subscription(
                kind, self.topics.simulated.score, self._hear, quality("command")
            )
            self._reset = self._ros.node.create_publisher(
                kind, self.topics.simulated.reset, quality("command")
            )

    def _hear(self, message: Any) -> None:
        self._told = tuple(message.data)

    def reset(self, seed: int) -> None:
        end = self._clock.now() + self.topics.connect_s
        self._resets += 1
        message = message_class("Float64MultiArray")()
        message.data = [float(seed), self._token + self._resets]
        while self._told[3] != message.data[1]:
            if self._clock.now() > end:
                raise DriverError("the simulated robot does not answer a reset.")
            self._reset.publish(message)
            self._clock.wait_until(self._clock.now() + 0.05)
        self._clock.wait_until(self._clock.now() + SETTLE_S)  # those on their way have come
        with self._lock:
            self._newest.clear()
        self._await_all()  # what is seen now is seen after the reset

    @property
    def score(self) -> float:
        return self._told[1]

    @property
    def over(self) -> bool:
        return self._told[2] > 0
