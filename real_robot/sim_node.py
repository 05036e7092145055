"""A simulated robot as a ROS 2 node: ``python -m ebt_policy.real_robot.sim_node robot=NAME``.

The node publishes the topics that `drivers.ros2` observes, and follows its commands. It has the
watchdogs of a real robot: it holds if commands or heartbeats are missing, or if the emergency stop
is pressed. Ctrl-C ends it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ebt_policy.cli import Entry, run_entry
from ebt_policy.config import options
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock, MonotonicClock
from ebt_policy.real_robot.drivers.ros_node import Channel, RosNode, message_class, qos_profile
from ebt_policy.real_robot.drivers.ros_topics import SimNodeStatus, parse_topics
from ebt_policy.real_robot.drivers.sim import SimRobot
from ebt_policy.real_robot.errors import MessageError
from ebt_policy.real_robot.robots import Robot


class SimNode:
    """The node of a simulated robot.

    Args:
        robot: description of the robot, with a section ``driver.simulates``.
        clock: clock of the simulation.

    Raises:
        ConfigError: the robot has no section ``driver.simulates``, or an option is invalid.
        DriverError: ROS 2 is not installed.
    """

    def __init__(self, robot: Robot, clock: Clock) -> None:
        topics = parse_topics(robot.driver)
        if topics is None or topics.simulated is None:
            raise ConfigError(
                f"robot={robot.name} has no robot.driver.simulates; it is not a simulated robot."
            )
        simulated = topics.simulated
        self._topics, self._clock, self._columns = topics, clock, simulated.parts
        # Without an entry, the topic of the position has the measured position.
        needed = {name for name, topic in topics.observed.items() if not topic.is_image}
        needed.discard(topics.position)
        if missing := sorted(needed - set(simulated.parts)):
            raise ConfigError(f"robot.driver.simulates.parts has no entry {', '.join(missing)}.")
        env = {"max_steps": round(robot.rate_hz * robot.episode_s), **simulated.env}
        spec = options(EnvSpec, env, "robot.driver.simulates.env")
        self._timeouts = robot.timeouts
        self.sim = SimRobot(spec, clock, command_s=robot.timeouts.command_s)
        self.sim.connect()
        observation = self.sim.read()
        frames, position = observation.values, topics.observed[topics.position]
        if topics.position not in simulated.parts and position.width != observation.position.size:
            raise ConfigError(
                f"robot.driver.observe.{topics.position} has {position.width} numbers, but the "
                f"robot's position has {observation.position.size}."
            )
        for name, topic in topics.observed.items():
            if topic.is_image and (topic.type != "Image" or name not in frames):
                raise ConfigError(
                    f"robot.driver.observe.{name} cannot be simulated: the environment has the "
                    f"values {', '.join(frames)}, and frames have the type Image."
                )
        self._estop_pressed, self._last_reset = False, SimNodeStatus()
        self._last_heartbeat = clock.now()
        self._ros = RosNode("simulated_robot")
        node = self._ros.node
        self._publishers = {
            name: node.create_publisher(
                message_class(topic.type), topic.topic, qos_profile(Channel.SENSOR)
            )
            for name, topic in topics.observed.items()
        }
        qos = qos_profile(Channel.COMMAND)
        self._score_publisher = node.create_publisher(
            message_class("Float64MultiArray"), simulated.score, qos
        )
        for message_type, topic, callback in (
            (topics.commanded.type, topics.commanded.topic, self._on_command),
            ("Empty", topics.heartbeat, self._on_heartbeat),
            ("Bool", topics.estop, self._on_estop),
            ("Float64MultiArray", simulated.reset, self._on_reset),
        ):
            node.create_subscription(message_class(message_type), topic, callback, qos)
        node.create_timer(1 / simulated.publish_hz, self._publish)

    def start(self) -> None:
        """Start publishing."""
        self._ros.start()

    def close(self) -> None:
        """End the node and the simulation."""
        self._ros.close()
        self.sim.close()

    def _publish(self) -> None:
        if self._clock.now() - self._last_heartbeat > self._timeouts.heartbeat_s:
            self.sim.stop()  # The controlling program has ended.
        stamp = self._ros.node.get_clock().now().to_msg()
        observation, state = self.sim.read(), self.sim.state
        for name, topic in self._topics.observed.items():
            if topic.is_image:
                reading = observation.values[name]
            elif name in self._columns:
                reading = state[self._columns[name]]
            else:
                reading = observation.position
            message = topic.message(reading, message_class)
            message.header.stamp = stamp
            self._publishers[name].publish(message)
        status = self._last_reset._replace(score=self.sim.score, solved=float(self.sim.solved))
        score = message_class("Float64MultiArray")()
        score.data = list(status)
        self._score_publisher.publish(score)

    def _on_command(self, message: Any) -> None:
        if self._estop_pressed:
            return
        position = self.sim.position
        try:
            command = self._topics.commanded.read(message, position)
            self.sim.send(command, self._clock.now())
        except MessageError as error:
            self._ros.node.get_logger().warning(f"rejected a command: {error}")

    def _on_heartbeat(self, _message: Any) -> None:
        self._last_heartbeat = self._clock.now()

    def _on_estop(self, message: Any) -> None:
        self._estop_pressed = message.data
        if self._estop_pressed:
            self.sim.stop()

    def _on_reset(self, message: Any) -> None:
        seed, number = message.data
        if number != self._last_reset.reset_number:
            self.sim.reset(int(seed))
            self._last_reset = SimNodeStatus(seed, reset_number=number, reset_s=self._ros.seconds())


def _run(config: dict[str, Any], _overrides: Sequence[str]) -> None:
    robot = options(Robot, config["robot"], "robot")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    node = SimNode(robot, MonotonicClock())
    node.start()
    Console().print(f"{robot.name} is simulated; Ctrl-C ends it", highlight=False)
    ended.wait()
    node.close()


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "python -m ebt_policy.real_robot.sim_node",
            "run",
            "Publish a simulated robot as a ROS 2 node. Only the options of robot= are used.",
            ("robot=ros2_push_t",),
            _run,
            help_choices=("robot=ros2_push_t",),
        )
    )


if __name__ == "__main__":
    main()
