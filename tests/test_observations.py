"""Observations that a run rejects: wrong times and invalid values."""

from dataclasses import replace

import numpy as np
import pytest
from doubles import point_runner

from ebt_policy.errors import ConfigError
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
