"""The ROS 2 driver, over real ROS 2, with a simulated robot in another process."""

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from doubles import SECTION, Wanderer
from driver_contract import check_driver

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import MonotonicClock, SimulatedClock
from ebt_policy.real_robot.drivers.replay import Recording
from ebt_policy.real_robot.drivers.ros_node import Channel, RosNode, message_class, qos_profile
from ebt_policy.real_robot.episode_runner import EpisodeRunner, observation_shapes, tick_seconds
from ebt_policy.real_robot.errors import DriverError
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.inference_worker import ThreadWorker
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.robots import Robot, load_robot
from ebt_policy.real_robot.sim_node import SimNode
from ebt_policy.real_robot.supervisor import State

DOMAIN = str(os.getpid() % 90 + 10)
TIMEOUT_S = 300.0  # seconds to wait for an expected event; long, as a busy machine is slow
# The timeouts are so long that only deliberate delays exceed them.
LONG_TIMEOUTS = [
    f"robot.watch.{name}={TIMEOUT_S}" for name in ("observation_s", "inference_s", "heartbeat_s")
] + [f"+robot.driver.connect_s={TIMEOUT_S}", f"robot.episode_s={2 * TIMEOUT_S}"]


@pytest.fixture(scope="module")
def ros_environment():
    """Use a separate ROS domain that is limited to this machine."""
    pytest.importorskip("rclpy")
    variables = {
        "ROS_DOMAIN_ID": str(os.getpid() % 90 + 10),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    yield
    for key, value in before.items():
        os.environ.pop(key) if value is None else os.environ.update({key: value})


@contextmanager
def sim_node(robot="ros2_push_t"):
    command = [sys.executable, "-m", "ebt_policy.real_robot.sim_node", f"robot={robot}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None and "is simulated" in node.stdout.readline()
        try:
            yield node
        finally:
            node.terminate()


@pytest.fixture(scope="module")
def node(ros_environment):
    with sim_node() as process:
        yield process


@pytest.mark.ros
def test_ros2_driver_satisfies_the_driver_contract(node):
    driver = load_robot("ros2_push_t", *LONG_TIMEOUTS).make_driver(MonotonicClock())
    check_driver(driver, TIMEOUT_S)


def runner_on(robot, **more):
    clock = MonotonicClock()
    policy = Wanderer()
    policy.shape = type(policy.shape)(**{**vars(policy.shape), "obs_dim": 20})

    def predict(obs, *, constraints, generator):
        """Return a chunk that moves slowly to the right."""
        import torch

        from ebt_policy.policies.chunk import Chunk

        position = obs["obs"][:, -1:, 18:]
        actions = position + torch.arange(-1, 15).view(1, 16, 1) * torch.tensor([4.0, 1.0])
        if constraints.project is not None:
            actions = constraints.project(actions)
        if (prefix := constraints.prefix) is not None:
            actions[:, : prefix.shape[1]] = prefix
        return Chunk(actions, torch.ones(1), energy=torch.zeros(1))

    policy.predict_chunk = predict
    planner = Planner(
        policy,
        robot.safety,
        tick_seconds(robot, 1.0),
        ThreadWorker(clock),
        clock,
        ExecutionOptions(),
    )
    return EpisodeRunner(
        robot, robot.make_driver(clock), planner, clock, observation_shapes(policy), **more
    )


@pytest.mark.ros
def test_push_t_episode_runs_over_ros(node, tmp_path):
    runner = runner_on(load_robot("ros2_push_t", *LONG_TIMEOUTS), record=tmp_path / "run")
    positions, observations = [], []

    def watch(tick):
        positions.append(tick.observation.position[0])
        observations.append(tick.observation.values["obs"])

    runner.loop.observers = [*runner.loop.observers, watch]
    try:
        runner.prepare()
        episode = runner.run_episode(7, should_quit=lambda: positions[-1] - positions[0] > 30)
        assert episode.ended[0] is State.RUNNING and positions[-1] - positions[0] > 30
        other = load_robot("sim_push_t").make_driver(runner.clock)  # the same start, without ROS
        other.connect()
        other.reset(7)
        np.testing.assert_allclose(observations[0], other.read().values["obs"], atol=0.01)
    finally:
        runner.close()
    assert len(Recording(str(tmp_path / "run"))) >= len(episode.ticks) - 1


@pytest.mark.ros
def test_arm_with_a_gripper_follows_joint_trajectories(ros_environment):
    pytest.importorskip("robosuite")
    driver = load_robot("ros2_lift_joints", *LONG_TIMEOUTS).make_driver(MonotonicClock())
    clock = driver._clock

    def command_until(goal, reached):
        end = clock.now() + TIMEOUT_S
        while not reached(driver.read()):
            assert clock.now() < end
            driver.send(goal, clock.now() + 0.05)
            clock.wait_until(clock.now() + 0.05)

    with sim_node("ros2_lift_joints"):
        try:
            driver.connect()
            driver.reset(3)
            start = driver.read()
            arm, finger, cube = np.split(start.values["obs"], [8, 9])
            np.testing.assert_allclose(arm, start.position, atol=1e-6)
            assert finger > 0.01 and 0.8 < cube[2] < 0.9
            assert np.linalg.norm(cube[3:]) == pytest.approx(1, abs=1e-5)
            goal = start.position + [0.2, 0, 0, 0, 0, 0, -0.2, 0]
            command_until(goal, lambda now: np.abs(now.position - goal)[:7].max() < 0.02)
            closed = np.append(goal[:7], 1.0)
            command_until(closed, lambda now: now.values["obs"][8] < 0.005)
            driver.stop()  # The gripper keeps its last command.
            assert driver.read().position[7] == 1.0
        finally:
            driver.close()


@pytest.mark.ros
def test_a_simulated_position_must_fit_its_topic(ros_environment):
    pytest.importorskip("robosuite")
    arm = "robot.driver.observe.arm"
    changes = (f"{arm}.names=[joint1,joint2]", f"{arm}.scale=1", f"{arm}.offset=0")
    robot = load_robot("ros2_lift_joints", *changes)
    with pytest.raises(ConfigError, match=r"observe\.arm has 2 numbers, but .* position has 8"):
        SimNode(robot, SimulatedClock())


@pytest.mark.ros
@pytest.mark.parametrize("kind", ["JointTrajectory", "Float64MultiArray", "TwistStamped"])
def test_commands_of_every_type_arrive(ros_environment, kind):
    """An arm with three numbers, in mm in the policy and in m in the ROS messages."""
    clock, received = MonotonicClock(), []
    at, to = f"/{kind}/tool", f"/{kind}/command"
    arm, xyz = RosNode("arm"), ["x", "y", "z"]
    tool = arm.node.create_publisher(message_class("PoseStamped"), at, qos_profile(Channel.SENSOR))
    arm.node.create_subscription(
        message_class(kind), to, received.append, qos_profile(Channel.COMMAND)
    )
    pose = message_class("PoseStamped")()
    pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = 0.1, 0.2, 0.3

    def publish_pose():
        pose.header.stamp = arm.node.get_clock().now().to_msg()
        tool.publish(pose)

    arm.node.create_timer(0.02, publish_pose)
    arm.start()
    part = {"topic": at, "type": "PoseStamped", "fields": xyz, "scale": 1000}
    out = {"topic": to, "type": kind, "names": xyz, "scale": 1000}
    driver_section = {
        "name": "ros2", "observe": {"tool": part}, "obs": ["tool"], "position": "tool",
        "command": out, "connect_s": TIMEOUT_S,
    }  # fmt: skip
    limits = {**SECTION["limits"], "position": [0, 1e4], "velocity": 1e3, "workspace": {}}
    robot = Robot(**{**SECTION, "action": xyz, "limits": limits, "driver": driver_section})
    driver = robot.make_driver(clock)
    try:
        driver.connect()
        np.testing.assert_allclose(driver.read().position, [100, 200, 300])
        end = clock.now() + TIMEOUT_S
        driver._clock = SimulatedClock()  # else a busy machine may have less than 0.1 s left
        goal, travel = np.array([110.0, 190.0, 300.0]), np.array([10.0, -10.0, 0.0])
        while len(received) < 2 and clock.now() < end:  # discovery takes a moment
            driver.send(goal, 0.1)
            goal = goal + travel if kind == "TwistStamped" else goal
            clock.wait_until(clock.now() + 0.1)
    finally:
        driver.close()
        arm.close()
    message = received[0]
    if kind == "Float64MultiArray":
        np.testing.assert_allclose(message.data, [0.11, 0.19, 0.3])
    elif kind == "JointTrajectory":
        assert list(message.joint_names) == ["x", "y", "z"]
        np.testing.assert_allclose(message.points[0].positions, [0.11, 0.19, 0.3])
        assert message.points[0].time_from_start.nanosec == pytest.approx(1e8)
    else:  # 1 cm in a tick of 0.1 s
        linear = received[1].twist.linear
        np.testing.assert_allclose([linear.x, linear.y, linear.z], [0.1, -0.1, 0], atol=1e-9)


@pytest.mark.ros
def test_second_commander_is_refused(node):
    """A second program may only watch, and does not send a stop command either."""
    kind, quiet = message_class("JointTrajectory"), []
    first = RosNode("first")
    first.node.create_publisher(kind, "/push_t/command", qos_profile(Channel.COMMAND))
    first.node.create_subscription(
        kind, "/push_t/command", quiet.append, qos_profile(Channel.COMMAND)
    )
    first.start()
    robot = load_robot("ros2_push_t", *LONG_TIMEOUTS)
    second, watching = runner_on(robot), runner_on(robot, active=False)
    try:
        with pytest.raises(DriverError, match="another program commands the robot on /push_t/com"):
            while True:  # until discovery has finished
                second.prepare()
        second.close()
        watching.prepare()
        assert watching.run_episode(0, should_quit=lambda: True).ended[0] is State.RUNNING
    finally:
        second.close()
        watching.close()
        first.close()
    assert not quiet


@pytest.mark.ros
def test_stop_topic_triggers_the_emergency_stop(node):
    from rclpy.duration import Duration

    runner = runner_on(load_robot("ros2_push_t", *LONG_TIMEOUTS))
    button = RosNode("button")
    publisher = button.node.create_publisher(
        message_class("Bool"), "/emergency_stop", qos_profile(Channel.STOP)
    )
    button.start()

    def press(tick):
        if tick.number >= 8:  # repeated, as discovery takes a moment
            publisher.publish(message_class("Bool")(data=True))

    runner.loop.observers = [*runner.loop.observers, press]
    try:
        runner.prepare()
        episode = runner.run_episode(1)
        assert episode.ended == (State.FAULT, "emergency stop: topic /emergency_stop")
        publisher.publish(message_class("Bool")(data=False))
        assert publisher.wait_for_all_acked(Duration(seconds=TIMEOUT_S))
    finally:
        runner.close()
        button.close()


@pytest.mark.ros
def test_node_continues_after_an_error_of_a_callback(ros_environment):
    node, later, clock = RosNode("errors"), [], MonotonicClock()

    def fail():
        raise ValueError("a bad message")

    node.node.create_timer(0.01, fail)
    node.node.create_timer(0.02, lambda: later.append(clock.now()))
    node.start()
    end = clock.now() + TIMEOUT_S
    while len(later) < 5 and node._thread.is_alive() and clock.now() < end:
        clock.wait_until(clock.now() + 0.02)
    is_alive = node._thread.is_alive()
    node.close()
    assert len(later) >= 5 and is_alive


@pytest.mark.slow
@pytest.mark.ros
def test_lost_robot_is_held_and_may_reconnect(ros_environment, monkeypatch, tmp_path):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(int(DOMAIN) + 100))  # a domain without robots
    robot = load_robot("ros2_push_t", *LONG_TIMEOUTS, "robot.watch.observation_s=1")
    runner = runner_on(robot, record=tmp_path / "run")
    at, back = {}, []  # event -> time; ticks since the robot came back
    with ExitStack() as nodes:
        first = nodes.enter_context(sim_node())

        def lose_and_restart(tick):
            if "killed" not in at:
                if tick.state is State.HOLD:  # on a busy machine
                    runner.supervisor.transition(State.RUNNING, "resumed by a person")
                elif tick.number >= 10:
                    first.kill()
                    first.wait()
                    at["killed"] = runner.clock.now()
            elif "restarted" not in at:
                if tick.state is State.HOLD:
                    nodes.enter_context(sim_node())  # takes seconds and skips ticks
                    at["restarted"] = runner.clock.now()
            elif tick.state is State.RUNNING:
                back.append(tick.number)
            elif tick.observation.stamp > at["restarted"]:
                runner.supervisor.transition(State.RUNNING, "resumed by a person")

        runner.loop.observers = [*runner.loop.observers, lose_and_restart]
        runner.prepare()
        episode = runner.run_episode(2, should_quit=lambda: len(back) >= 5)
        runner.close()
    assert episode.ended[0] is State.RUNNING and len(back) == 5
    away = [stop for stop in episode.stops if at["killed"] < stop.time < at["restarted"]]
    assert [(stop.state, stop.reason) for stop in away] == [(State.HOLD, "no observation for 1 s")]
    assert State.FAULT not in {stop.state for stop in episode.stops} and episode.overruns > 0
    assert len(Recording(str(tmp_path / "run"))) >= 5


@pytest.mark.ros
def test_missing_robot_is_refused(ros_environment, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "9")
    robot = load_robot("ros2_push_t", "+robot.driver.connect_s=0.3")
    driver = robot.make_driver(MonotonicClock())
    with pytest.raises(DriverError, match="no usable message came on /push_t/agent, /push_t/block"):
        driver.connect()
    driver.close()


def test_missing_ros_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    driver = load_robot("ros2_push_t").make_driver(MonotonicClock())
    with pytest.raises(DriverError, match=r"pip install 'ebt_policy\[ros\]'"):
        driver.connect()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("robot.driver.obs=[agent,hand]", "observe has no hand; it has agent, block"),
        ("robot.driver.transform=magic", "transform=magic is unknown; there are push_t_keypoints"),
        ("+robot.driver.stamps=none", "stamps must be"),
        ("robot.driver.command.type=Pose", "not supported"),
        ("+robot.driver.colour=red", "has no option colour"),
        ("robot.driver.observe.agent.names=[]", "needs names"),
        ("robot.driver.observe.agent.scale=nan", "/push_t/agent: scale must be finite"),
        ("robot.driver.observe.agent.scale=0", "/push_t/agent: scale must not be 0"),
        ("robot.driver.observe.block.scale=[1,2]", "scale must be a number or 3 numbers"),
        ("+robot.driver.command.offset=inf", "/push_t/command: offset must be finite"),
        ("+robot.driver.observe.block.frame.rpy=[0,0,nan]", "the frame table: rpy must be finite"),
        ("+robot.driver.connect_s=nan", "connect_s must be"),
        ("robot.driver.simulates.publish_hz=-1", "publish_hz must be"),
    ],
)
def test_invalid_topics_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        load_robot("ros2_push_t", change).make_driver(MonotonicClock())
