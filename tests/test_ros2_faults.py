"""Faults of robots with ROS 2 topics, on a simulated clock and without communication."""

import numpy as np
import pytest
from doubles import SECTION, SimulatedWorker
from ros_doubles import make_ros2_driver

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.drivers.ros2 import Ros2Driver
from ebt_policy.real_robot.episode_runner import EpisodeRunner
from ebt_policy.real_robot.errors import DriverError
from ebt_policy.real_robot.keyboard import Operator
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.supervisor import State
from ebt_policy.real_robot.teleop_device import TeleopContext, TeleopDevice

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy")

from ebt_policy.real_robot.drivers.ros_node import message_class  # noqa: E402

RATE, SPEED_LIMIT = 20, 0.5  # Hz, m/s
TOOL = {
    **SECTION,
    "rate_hz": RATE,
    "action": ["x", "y", "z"],
    "episode_s": 5.0,
    "limits": {
        "position": [-1, 1],
        "velocity": SPEED_LIMIT,
        "acceleration": 5,
        "max_tracking_error": 0.3,
        "workspace": {},
    },
    "driver": {
        "name": "ros2",
        "observe": {"tool": {"topic": "/tool", "type": "PoseStamped", "fields": ["x", "y", "z"]}},
        "obs": ["tool"],
        "position": "tool",
        "command": {"topic": "/twist", "type": "TwistStamped"},
    },
}


JOINTS = {
    **SECTION,
    "limits": {**SECTION["limits"], "position": [-1, 1], "workspace": {}},
    "driver": {
        "name": "ros2",
        "observe": {"arm": {"topic": "/joints", "type": "JointState", "names": ["x", "y"]}},
        "obs": ["arm"],
        "position": "arm",
        "command": {"topic": "/command", "type": "JointTrajectory", "names": ["x", "y"]},
    },
}


class VelocityArm:
    """An arm that follows the twists of a driver, with a lag and measurements that arrive late.

    Args:
        fake: topics of the driver.
        lag_s: time constant of the velocity, s.
        delay_s: time from a measurement to its arrival, s.
        dead_at: time of the last measurement, clock seconds.

    Attributes:
        position, velocity: (3,) m and m/s.
    """

    def __init__(self, fake, lag_s=0.03, delay_s=0.03, dead_at=np.inf):
        self.fake, self.lag_s, self.delay_s, self.dead_at = fake, lag_s, delay_s, dead_at
        self.position, self.velocity = np.zeros(3), np.zeros(3)
        self.step()

    @property
    def commanded(self):
        """The newest commanded velocity (3,), m/s."""
        if not self.fake.published["/twist"]:
            return np.zeros(3)
        linear = self.fake.published["/twist"][-1].twist.linear
        return np.array([linear.x, linear.y, linear.z])

    def step(self, step_s=0.01):
        clock = self.fake.clock
        self.velocity = self.velocity + (self.commanded - self.velocity) * step_s / self.lag_s
        self.position = self.position + self.velocity * step_s
        if clock.now() <= self.dead_at:
            message = message_class("PoseStamped")()
            point = message.pose.position
            point.x, point.y, point.z = self.position.tolist()
            message.pose.orientation.w = 1.0
            message.header.stamp = self.fake.stamp()
            clock.call_at(clock.now() + self.delay_s, lambda: self.fake.deliver("/tool", message))
        clock.call_at(clock.now() + step_s, self.step)


class JointArm:
    """An arm that is at its commanded position at once, and measures it every 0.02 s.

    Args:
        fake: topics of the driver.

    Attributes:
        position: the measured joints x and y, rad; None while there is no measurement.
    """

    def __init__(self, fake):
        self.fake = fake
        self.position: list[float] | None = [0.1, 0.2]
        self.step()

    @property
    def commanded(self):
        """The newest commanded joints, rad."""
        return list(self.fake.published["/command"][-1].points[0].positions)

    def step(self):
        clock = self.fake.clock
        if self.position is not None:
            self.fake.deliver_joints("/joints", dict(zip("xy", self.position, strict=True)))
        clock.call_at(clock.now() + 0.02, self.step)

    def press(self, is_pressed):
        self.fake.deliver("/emergency_stop", message_class("Bool")(data=is_pressed))


class Idle(TeleopDevice):
    def action(self, tick, motion):
        return motion.position


class Pusher(TeleopDevice):
    """A person who moves along x with the largest velocity; one tick takes `late_s` longer."""

    def __init__(self, context, clock, late_s):
        super().__init__(context)
        self.clock, self.late_s = clock, late_s

    def action(self, tick, motion):
        if tick == 20:
            self.clock.wait_until(self.clock.now() + self.late_s)
        return motion.position + [SPEED_LIMIT / RATE, 0, 0]


def tool_runner(monkeypatch, late_s=0.0, **arm_options):
    """Return a prepared runner, and the arm that it moves."""
    clock, robot = SimulatedClock(100.0), Robot(**TOOL)
    driver, fake = make_ros2_driver(robot, clock, monkeypatch)
    worker = SimulatedWorker(clock, lambda: 0.0)
    pusher = Pusher(TeleopContext(driver, robot.safety, 1 / RATE, worker), clock, late_s)
    runner = EpisodeRunner(robot, driver, pusher, clock, {}, watchdog=False)
    arm = VelocityArm(fake, **arm_options)
    runner.prepare()
    return runner, arm


def test_held_robot_stands_still_after_its_position_topic_has_ended(monkeypatch):
    runner, arm = tool_runner(monkeypatch, dead_at=101.0)
    positions = []
    runner.loop.observers = [*runner.loop.observers, lambda _: positions.append(arm.position[0])]
    episode = runner.run_episode(0)
    assert episode.ended == (State.HOLD, "no observation for 0.25 s")
    # The robot moved for 0.35 s after its last measurement, and then braked.
    assert 0.4 < positions[-1] < 0.75
    assert np.ptp(positions[-40:]) < 1e-6 and not arm.commanded.any()


@pytest.mark.parametrize("late_s", [0.0, 0.06, 0.08, 0.09])
def test_velocity_limit_holds_with_late_measurements_and_late_ticks(monkeypatch, late_s):
    runner, arm = tool_runner(monkeypatch, late_s)
    speeds, errors = [], []

    def watch(tick):
        speeds.append(np.abs(arm.commanded).max())
        errors.append(tick.observation.position[0] - tick.command[0])

    runner.loop.observers = [*runner.loop.observers, watch]
    runner.run_episode(0, should_quit=lambda: len(speeds) > 35)
    assert runner.supervisor.state is not State.HOLD
    assert 0.4 < max(speeds) <= SPEED_LIMIT + 1e-9 and np.abs(errors).max() < 0.1
    assert not arm.commanded.any()  # The episode is over.


def test_stopped_velocity_robot_gets_zeros_without_a_position(monkeypatch):
    runner, arm = tool_runner(monkeypatch)
    driver = runner.driver
    assert isinstance(driver, Ros2Driver)
    for tick in range(3):
        driver.send(np.array([0.02 * tick, 0, 0]), runner.clock.now() + 0.05)
        runner.clock.wait_until(runner.clock.now() + 0.05)
    assert arm.commanded[0] > 0.3
    driver._newest.clear()
    driver.stop()
    assert not arm.commanded.any()


def test_twist_needs_three_or_six_numbers():
    robot = Robot(**{**TOOL, "action": ["x", "y"]})
    with pytest.raises(ConfigError, match=r"/twist: TwistStamped needs 3 or 6 .* has 2"):
        robot.make_driver(SimulatedClock())


def joint_runner(monkeypatch):
    """Return a runner, which is not prepared, and the arm that it commands."""
    clock, robot = SimulatedClock(100.0), Robot(**JOINTS)
    driver, fake = make_ros2_driver(robot, clock, monkeypatch)
    worker = SimulatedWorker(clock, lambda: 0.0)
    device = Idle(TeleopContext(driver, robot.safety, 0.1, worker))
    return EpisodeRunner(robot, driver, device, clock, {}, watchdog=False), JointArm(fake)


def test_robot_is_not_rearmed_while_the_stop_topic_is_true(monkeypatch):
    runner, arm = joint_runner(monkeypatch)
    operator = Operator(runner.supervisor, runner.estop)
    runner.prepare()
    arm.fake.clock.call_at(runner.clock.now() + 0.5, lambda: arm.press(True))
    episode = runner.run_episode(0)
    assert episode.ended == (State.FAULT, "emergency stop: topic /emergency_stop")
    operator.press_key("a")
    with pytest.raises(DriverError, match="newest message on /emergency_stop is true; release it"):
        runner.prepare()
    assert runner.supervisor.state is not State.READY
    arm.press(False)
    runner.prepare()
    assert runner.run_episode(0).ended[0] is State.RUNNING


def test_stop_holds_the_measured_position_or_else_the_last_command(monkeypatch):
    runner, arm = joint_runner(monkeypatch)
    runner.prepare()
    driver, clock = runner.driver, runner.clock

    def command(goal):
        driver.send(np.array(goal), clock.now() + 0.1)
        clock.wait_until(clock.now() + 0.1)

    command([0.3, 0.3])
    driver.stop()
    assert arm.commanded == [0.1, 0.2]
    arm.position = [0.1, np.nan]
    command([0.4, 0.4])
    driver.stop()  # The last finite measurement is 0.1 s old.
    assert arm.commanded == [0.1, 0.2]
    arm.position = None
    for tick in range(3):
        command([0.5, 0.1 * tick])
    driver.stop()
    assert arm.commanded == [0.5, 0.2]
    num_commands = len(arm.fake.published["/command"])
    driver.stop()  # A person may have moved the robot since the first stop.
    driver.close()
    assert len(arm.fake.published["/command"]) == num_commands


def test_unreadable_messages_are_rejected_with_their_reason(monkeypatch):
    camera = {"topic": "/camera", "type": "Image", "size": [8, 8]}
    driver_section = {**JOINTS["driver"], "connect_s": 0.5}
    driver_section["observe"] = {**driver_section["observe"], "camera": camera}
    clock = SimulatedClock(100.0)
    robot = Robot(**{**JOINTS, "driver": driver_section})
    driver, fake = make_ros2_driver(robot, clock, monkeypatch)
    JointArm(fake)
    empty = message_class("Image")(encoding="rgb8")
    for message, reason in (
        (empty, "/camera: the image is empty"),
        (message_class("Empty")(), "/camera: AttributeError: .*no attribute 'header'"),
    ):
        clock.call_at(clock.now() + 0.1, lambda message=message: fake.deliver("/camera", message))
        with pytest.raises(DriverError, match=rf"no usable message came on /camera .*\({reason}"):
            driver.connect()
