"""Observations that a run rejects: wrong times and invalid values."""

from dataclasses import replace

import numpy as np
import pytest
from doubles import point_runner

from ebt_policy.data.episode_store import read_episodes
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.episode_runner import EpisodeRunner
from ebt_policy.real_robot.supervisor import State


@pytest.mark.parametrize("stamp", [1.7e9, np.nan, np.inf, 101.0])
def test_stamps_of_another_clock_hold_the_robot(stamp):
    runner, driver, _, clock = point_runner()
    driver.transform = lambda o: o if clock.now() < 100.5 else replace(o, stamp=stamp)
    clock.call_at(100.95, lambda: setattr(driver, "transform", lambda observation: observation))
    episode = runner.run_episode(0)
    assert episode.ended[0] is State.HOLD
    assert f"stamp {stamp:.3f} is not a past time of the clock of the run" in episode.ended[1]
    assert "the driver must use context.clock.now()" in episode.ended[1]


def test_a_frozen_observation_with_a_future_stamp_is_not_used():
    runner, driver, _, clock = point_runner()
    frozen = []

    def freeze(observation):
        if clock.now() < 100.5:
            return observation
        frozen.append(replace(observation, stamp=1.7e9))
        return frozen[0]

    driver.transform = freeze
    episode = runner.run_episode(0)
    assert episode.ended[0] is State.HOLD and "no observation for 0.25 s" in episode.ended[1]
    assert episode.stops[0].time < 100.5 + 0.25 + 2 * 0.1


def test_rounding_of_stamps_is_accepted():
    runner, driver, _, _ = point_runner()
    driver.transform = lambda o: replace(o, stamp=o.stamp + 1e-6)
    assert runner.run_episode(0).completed


def test_the_first_observation_must_be_recent():
    runner, driver, _, _ = point_runner()
    driver.transform = lambda o: replace(o, stamp=o.stamp - 90)
    message = (
        r"the newest is 90 s old, and robot\.watch\.observation_s=0\.25; if the robot has another "
        r"clock, use the time of arrival \(robot\.driver\.stamps=arrival with ROS 2\)"
    )
    with pytest.raises(ConfigError, match=message):
        runner.prepare()
    driver.transform = lambda o: replace(o, stamp=o.stamp - 0.2)
    runner.prepare()


def recording_runner(store):
    """Return a runner that is not prepared yet, its driver and its clock."""
    runner, driver, _, clock = point_runner()
    shapes = runner.loop.shapes
    return (
        EpisodeRunner(
            runner.robot, driver, runner.source, clock, shapes, watchdog=False, record=store
        ),
        driver,
        clock,
    )


def add_sensors(observation):
    """Return an observation with a wrench and a camera, which the policy does not read."""
    sensors = {"wrench": np.ones(3, np.float32), "top": np.zeros((12, 16, 3), np.uint8)}
    return replace(observation, values={**observation.values, **sensors})


def break_wrench(observation):
    observation.values["wrench"][1] = np.nan


def remove_camera(observation):
    del observation.values["top"]


def reshape_wrench(observation):
    observation.values["wrench"] = np.ones(6, np.float32)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_wrench, "the observation's wrench has NaN or infinity"),
        (remove_camera, "the observation has no top; it has obs, wrench"),
        (reshape_wrench, r"wrench has the shape (6,) instead of (3,)"),
    ],
)
def test_invalid_recorded_values_hold_the_robot_and_the_episode_is_stored(tmp_path, damage, reason):
    runner, driver, clock = recording_runner(tmp_path / "run")
    driver.transform = add_sensors
    runner.prepare()
    start = clock.now()

    def transform(observation):
        observation = add_sensors(observation)
        now = clock.now() - start
        if 0.95 <= now < 1.05 or now > 2:
            damage(observation)
        return observation

    driver.transform = transform
    episode = runner.run_episode(0)
    assert episode.ended[0] is State.HOLD and reason in episode.ended[1]
    assert 2 < episode.stops[0].time - start < 2.5  # One rejected observation does no harm.
    wrench = read_episodes(tmp_path / "run").arrays["wrench"]
    assert len(wrench) > 15 and (wrench == 1).all()


def test_a_recorded_value_must_be_valid_before_the_robot_moves(tmp_path):
    runner, driver, _ = recording_runner(tmp_path / "run")

    def transform(observation):
        observation = add_sensors(observation)
        break_wrench(observation)
        return observation

    driver.transform = transform
    with pytest.raises(ConfigError, match=r"no valid observation .* wrench has NaN or infinity"):
        runner.prepare()


def test_recorded_frames_of_another_size_are_resized(tmp_path):
    runner, driver, _ = recording_runner(tmp_path / "run")
    driver.transform = add_sensors
    runner.prepare()

    def transform(observation):
        observation = add_sensors(observation)
        observation.values["top"] = np.zeros((24, 32, 3), np.uint8)
        return observation

    driver.transform = transform
    assert runner.run_episode(0).completed
    assert read_episodes(tmp_path / "run").arrays["top"].shape[1:] == (12, 16, 3)


@pytest.mark.parametrize("method", ["read", "send"])
def test_any_error_of_the_driver_stops_the_robot(method):
    runner, driver, _, clock = point_runner()
    usual = getattr(driver, method)

    def fail(*arguments):
        if 101 <= clock.now() < 102:
            raise OSError(5, "Input/output error")
        return usual(*arguments)

    setattr(driver, method, fail)
    episode = runner.run_episode(0)
    reason = f"the driver failed in {method}() (OSError: [Errno 5] Input/output error)."
    assert episode.ended == (State.FAULT, reason) and driver.holding
    clock.wait_until(102.0)
    assert runner.supervisor.rearm()
    runner.prepare()
    assert runner.run_episode(0).completed


def test_an_error_in_a_reset_stops_the_robot():
    runner, driver, _, _ = point_runner()

    def reset(seed):
        raise KeyError("joint")

    driver.reset = reset
    episode = runner.run_episode(0)
    assert episode.ended == (State.FAULT, "the driver failed in reset() (KeyError: 'joint').")
    assert not driver.commands
