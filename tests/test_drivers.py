"""The contract of drivers, and the replay of recordings in place of a robot."""

from dataclasses import replace

import numpy as np
import pytest
from doubles import Wanderer, point_runner
from driver_contract import check_driver
from test_robot_costs import REGION

from ebt_policy.data.episode_store import read_episodes
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import MonotonicClock
from ebt_policy.real_robot.drivers.replay import Recording, ReplayDriver
from ebt_policy.real_robot.episode_runner import EpisodeRunner
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.robots import load_robot


def test_simulated_robot_satisfies_the_driver_contract():
    check_driver(load_robot("sim_push_t").make_driver(MonotonicClock()))


def test_simulated_robot_with_a_camera_satisfies_the_driver_contract():
    driver = load_robot("sim_push_t_image").make_driver(MonotonicClock())
    check_driver(driver)
    driver.connect()
    values = driver.read().values
    assert values["image"].shape == (96, 96, 3) and values["obs"].shape == (2,)
    driver.close()


def test_replay_driver_satisfies_the_driver_contract(tmp_path):
    runner = point_runner(record=tmp_path / "run")[0]
    runner.run_episode(0)
    check_driver(ReplayDriver(Recording(str(tmp_path / "run")), MonotonicClock()))


def test_replay_driver_returns_recorded_observations(tmp_path):
    ticks: list[Tick] = []
    runner, _, _, clock = point_runner(record=tmp_path / "run", observers=[ticks.append])
    episode = runner.run_episode(0)
    recording = Recording(str(tmp_path / "run"))
    driver = ReplayDriver(recording, clock)
    driver.connect()
    start = clock.now()
    for tick in ticks[1:]:
        assert tick.observation is not None
        clock.wait_until(start + tick.due - ticks[0].due)
        np.testing.assert_array_equal(driver.read().position, tick.observation.position)
    planner = Planner(
        Wanderer(), runner.robot.safety, 0.1, runner.source.worker, clock, ExecutionOptions()
    )
    robot = replace(runner.robot, episode_s=60.0)
    shadow = EpisodeRunner(robot, driver, planner, clock, {}, active=False, watchdog=False)
    shadow.prepare()
    assert len(shadow.run_episode(0).ticks) == len(episode.ticks)  # it ends with the recording
    assert recording.values == ["obs"]
    with pytest.raises(ConfigError, match="has 1 episodes; there is no episode 4"):
        Recording(str(tmp_path / "run"), 4)


def test_a_replayed_recording_can_be_recorded(tmp_path):
    runner, _, _, clock = point_runner(record=tmp_path / "first", change={"costs": [REGION]})
    runner.run_episode(0)
    first = read_episodes(tmp_path / "first").arrays
    assert {"human", "cost"} <= first.keys()
    driver = ReplayDriver(Recording(str(tmp_path / "first")), clock)
    shadow = EpisodeRunner(
        runner.robot, driver, runner.source, clock, {}, active=False, watchdog=False,
        record=tmp_path / "second",
    )  # fmt: skip
    shadow.prepare()
    assert shadow.run_episode(0).kept
    second = read_episodes(tmp_path / "second").arrays
    assert second.keys() == first.keys() and not second["sent"].any()
