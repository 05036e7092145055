"""Simulated robots: time, their own watchdog, and the same physics as the environment."""

import numpy as np
import pytest

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.drivers.sim import SimRobot
from ebt_policy.real_robot.errors import DriverError

PUSH_T = EnvSpec("ebt_policy/PushT-v0", 300)
LIFT = EnvSpec("ebt_policy/Lift-v0", 400, kwargs={"actions": "absolute"})


def robot(spec=PUSH_T, seed=5, **more):
    clock = SimulatedClock(50.0)
    sim = SimRobot(spec, clock, command_s=0.3, **more)
    sim.connect()
    sim.reset(seed)
    return sim, clock


def test_timed_commands_equal_environment_steps():
    sim, clock = robot()
    env = PUSH_T.make()
    observation, _ = env.reset(seed=5)
    rng = np.random.default_rng(0)
    best = 0.0
    for _ in range(60):
        np.testing.assert_array_equal(sim.read().values["obs"], observation)
        action = observation[18:] + rng.uniform(-40, 40, 2)
        sim.send(action, clock.now() + 0.1)
        clock.wait_until(clock.now() + 0.1)
        observation, reward, *_ = env.step(action)
        best = max(best, reward)
    sim.read()
    assert sim.score == best


def test_simulation_time_advances_without_reads():
    ends = []
    for reads in (1, 7):
        sim, clock = robot()
        target = sim.read().position + [60, -30]
        sim.send(target, clock.now() + 0.1)
        for _ in range(reads):
            clock.wait_until(clock.now() + 0.2 / reads)
            sim.read()
        ends.append(sim.read().position)
        assert sim.read().stamp == pytest.approx(clock.now(), abs=0.01)
    np.testing.assert_allclose(*ends, atol=1.0)  # one physics step more or less


def test_simulated_robot_holds_without_commands():
    sim, clock = robot()
    start = sim.read().position
    sim.send(start + [400, 0], clock.now() + 0.1)
    clock.wait_until(clock.now() + 0.25)
    assert not sim.holding
    clock.wait_until(clock.now() + 0.06)
    assert sim.holding
    clock.wait_until(clock.now() + 2.0)
    rest = sim.read().position
    clock.wait_until(clock.now() + 2.0)
    np.testing.assert_allclose(sim.read().position, rest, atol=0.01)
    assert rest[0] < start[0] + 390  # it stopped before its target


def test_stop_holds_and_close_disconnects():
    sim, clock = robot()
    sim.send(sim.read().position + [300, 0], clock.now() + 0.1)
    clock.wait_until(clock.now() + 0.1)
    sim.stop()
    assert sim.holding
    sim.close()
    sim.close()
    sim.stop()
    with pytest.raises(DriverError, match="not connected"):
        sim.read()
    with pytest.raises(DriverError, match="not connected"):
        sim.send(np.zeros(2), 0.0)


def test_simulated_robot_renders_video():
    sim, _ = robot(render=True)
    frame = sim.render()
    assert frame.shape == (256, 256, 3) and frame.dtype == np.uint8 and frame.std() > 10


def test_environments_without_substeps_are_refused():
    with pytest.raises(ConfigError, match="cannot be a robot"):
        SimRobot(EnvSpec("CartPole-v1", 10), SimulatedClock(), command_s=0.3)
    with pytest.raises(ConfigError, match="command_s must be positive"):
        SimRobot(PUSH_T, SimulatedClock(), command_s=0)


@pytest.mark.robomimic
def test_timed_arm_with_joint_goals_equals_environment_steps():
    pytest.importorskip("robosuite")
    spec = EnvSpec("ebt_policy/Lift-v0", 400, kwargs={"actions": "joints"})
    sim, clock = robot(spec, seed=3)
    env = spec.make()
    observation, _ = env.reset(seed=3)
    goal = sim.read().position
    np.testing.assert_allclose(goal[:7], observation[:7], atol=1e-6)
    for i in range(20):
        goal = goal + np.array([0.01, 0.02, 0.0, -0.02, 0.0, 0.0, 0.03, 0.0])
        sim.send(goal, clock.now() + 0.05)
        clock.wait_until(clock.now() + 0.05)
        observation, *_ = env.step(goal)
        np.testing.assert_allclose(sim.read().values["obs"], observation, atol=2e-4, err_msg=str(i))
    np.testing.assert_allclose(sim.read().position[:7], goal[:7], atol=0.15)  # It lags.


@pytest.mark.robomimic
def test_timed_arm_equals_environment_steps():
    pytest.importorskip("robosuite")
    sim, clock = robot(LIFT, seed=3)
    env = LIFT.make()
    observation, _ = env.reset(seed=3)
    goal = sim.read().position
    np.testing.assert_allclose(goal[:3], observation[:3], atol=1e-6)
    for i in range(20):
        goal = goal + np.array([0.004, 0.002, -0.003] + [0.0] * 7)
        sim.send(goal, clock.now() + 0.05)
        clock.wait_until(clock.now() + 0.05)
        observation, *_ = env.step(goal)
        np.testing.assert_allclose(sim.read().values["obs"], observation, atol=2e-4, err_msg=str(i))
    sim.stop()
    clock.wait_until(clock.now() + 1.0)
    rest = sim.read().position
    clock.wait_until(clock.now() + 1.0)
    np.testing.assert_allclose(sim.read().position[:3], rest[:3], atol=2e-3)
    relative = EnvSpec("ebt_policy/Lift-v0", 400, kwargs={"actions": "delta"})
    with pytest.raises(ValueError, match=r"use actions=absolute"):
        moving, other = robot(relative)
        other.wait_until(other.now() + 1.0)
        moving.read()
