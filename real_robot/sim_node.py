"""A simulated robot as a ROS 2 node: ``python -m ebt_policy.real_robot.sim_node robot=NAME``.

It publishes what `drivers.ros2` observes and moves as that commands, with the watchdogs of a robot:
without commands or heartbeats, or with the emergency stop pressed, it holds. Ends with Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ebt_policy.cli import hydra_arguments, report_errors
from ebt_policy.config import options
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock, MonotonicClock
from ebt_policy.real_robot.drivers.base import DriverError
from ebt_policy.real_robot.drivers.ros2 import RosNode, message_class, quality
from ebt_policy.real_robot.drivers.ros_messages import MessageError
from ebt_policy.real_robot.drivers.sim import SimRobot
from ebt_policy.real_robot.robots import Robot


class SimNode:
    """The node of a robot whose driver's configuration says what it simulates.

    Raises:
        ConfigError: it says nothing.
        DriverError: ROS 2 is not installed.
    """

    def __init__(self, robot: Robot, clock: Clock) -> None:
        played = robot.topics.simulated if robot.driver.get("name") == "ros2" else None
        if played is None:
            raise ConfigError(f"{robot.name} has no robot.driver.simulates: it is a real one.")
        self._topics, self._clock, self._parts = robot.topics, clock, played.parts
        if silent := sorted(set(robot.topics.parts) - set(played.parts)):
            raise ConfigError(f"robot.driver.simulates.parts needs {', '.join(silent)}.")
        env = {"max_steps": round(robot.rate_hz * robot.episode_s), **played.env}
        spec = options(EnvSpec, env, "robot.driver.simulates.env")
        self._watch = robot.timeouts
        self.sim = SimRobot(spec, clock, command_s=robot.timeouts.command_s)
        self.sim.connect()
        self._pressed, self._token, self._seed = False, 0.0, 0.0
        self._beat = clock.now()
        self._ros = RosNode("simulated_robot")
        node = self._ros.node
        self._publishers = {
            name: node.create_publisher(message_class(part.type), part.topic, quality("sensor"))
            for name, part in self._topics.parts.items()
        }
        self._told = node.create_publisher(
            message_class("Float64MultiArray"), played.score, quality("command")
        )
        for kind, topic, heard in (
            (self._topics.out.type, self._topics.out.topic, self._command),
            ("Empty", self._topics.heartbeat, self._beats),
            ("Bool", self._topics.estop, self._stop),
            ("Float64MultiArray", played.reset, self._reset),
        ):
            node.create_subscription(message_class(kind), topic, heard, quality("command"))
        node.create_timer(1 / played.publish_hz, self._publish)

    def start(self) -> None:
        self._ros.start()

    def close(self) -> None:
        self._ros.close()
        self.sim.close()

    def _publish(self) -> None:
        if self._clock.now() - self._beat > self._watch.heartbeat_s:
            self.sim.stop()  # nobody is there any more
        seen, state = self.sim.read(), self.sim.state
        stamp = self._ros.node.get_clock().now().to_msg()
        for name, part in self._topics.parts.items():
            numbers = seen.values[name] if part.image else state[self._parts[name]]
            message = part.message(numbers, message_class)
            message.header.stamp = stamp
            self._publishers[name].publish(message)
        told = message_class("Float64MultiArray")()
        told.data = [self._seed, self.sim.score, float(self.sim.over), self._token]
        self._told.publish(told)

    def _command(self, message: Any) -> None:
        if self._pressed:
            return
        position = self.sim.read().position
        try:
            self.sim.send(self._topics.out.read(message, position), self._clock.now())
        except MessageError as error:
            self._ros.node.get_logger().warning(f"rejected: {error}")

    def _beats(self, _message: Any) -> None:
        self._beat = self._clock.now()

    def _stop(self, message: Any) -> None:
        self._pressed = message.data
        if self._pressed:
            self.sim.stop()

    def _reset(self, message: Any) -> None:
        seed, token = message.data
        if token != self._token:
            self.sim.reset(int(seed))
            self._seed, self._token = seed, token


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="run")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        section: Any = OmegaConf.to_container(cfg.robot, resolve=True)
        robot = options(Robot, section, "robot")
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        try:
            node = SimNode(robot, MonotonicClock())
        except DriverError as error:
            raise ConfigError(str(error)) from error
        node.start()
        Console().print(f"{robot.name} is simulated; Ctrl-C ends it", highlight=False)
        ended.wait()
        node.close()


def main() -> None:
    with report_errors():
        sys.argv[1:] = hydra_arguments(sys.argv[1:])
    _main()


if __name__ == "__main__":
    main()
