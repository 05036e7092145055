"""The control loop: timing, states and transitions."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from doubles import RATE, SECTION, Wanderer, point_runner

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.drivers.base import Observation
from ebt_policy.real_robot.errors import SafetyError
from ebt_policy.real_robot.keyboard import Operator
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.observation_reader import ObservationReader
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.supervisor import State

DT = 1 / RATE


def commands_of(episode):
    return np.array([tick.command for tick in episode.ticks])


def test_ticks_are_due_at_fixed_times():
    runner, driver, _, _ = point_runner()
    episode = runner.run_episode(3)
    due = [tick.due for tick in episode.ticks]
    np.testing.assert_allclose(np.diff(due), DT)
    assert len(due) == 40 and episode.overruns == episode.ticks_without_plan == 0
    times = [when for when, _ in driver.commands]
    np.testing.assert_allclose(times[1:], due[1:], atol=1e-9)  # the first waits for a chunk
    assert driver.holding and driver.stops >= 1  # the robot holds after the episode


def test_results_have_no_observations():
    observed: list[Tick] = []
    runner, _, _, _ = point_runner(observers=[observed.append])
    episode = runner.run_episode(0)
    assert all(tick.observation is not None for tick in observed)
    assert len(episode.ticks) == 40 and all(tick.observation is None for tick in episode.ticks)


def test_late_ticks_run_at_once_and_missed_ticks_are_skipped():
    runner, _, _, clock = point_runner()
    slow = {5: 0.12, 12: 0.47}  # tick -> seconds that an observer takes

    def busy(tick):
        clock.wait_until(clock.now() + slow.get(tick.number, 0.0))

    runner.loop.observers = [busy]
    episode = runner.run_episode(0)
    numbers = [tick.number for tick in episode.ticks]
    assert 6 in numbers and 13 not in numbers and 17 in numbers
    assert episode.overruns == 4
    late = {tick.number: tick.late for tick in episode.ticks}
    assert late[6] == pytest.approx(0.02) and abs(late[7]) < 1e-9
    np.testing.assert_allclose(
        [t.due - t.number * DT for t in episode.ticks], 100.0 + 0.12, atol=0.2
    )


def test_repeated_clamps_hold_the_robot():
    policy = Wanderer(reach=30.0)
    original = policy.predict_chunk
    policy.predict_chunk = lambda obs, *, constraints, generator: original(
        obs, constraints=replace(constraints, project=None), generator=generator
    )
    runner, driver, _, _ = point_runner(policy=policy)
    episode = runner.run_episode(1)
    assert episode.ended[0] is State.HOLD
    assert "had to be clamped for 15 ticks in a row" in episode.ended[1]
    np.testing.assert_allclose(driver.commands[-1][1], driver.commands[-2][1])  # at rest


def test_held_robot_resumes_from_its_position():
    runner, _, _, clock = point_runner()
    operator = Operator(runner.supervisor, runner.estop)
    start = clock.now()
    clock.call_at(start + 0.95, lambda: operator.press_key("h"))
    clock.call_at(start + 1.95, lambda: operator.press_key("r"))
    episode = runner.run_episode(0)
    states = [tick.state for tick in episode.ticks]
    assert states[9] is State.RUNNING and states[12] is State.HOLD and states[-1] is State.RUNNING
    held_commands = commands_of(episode)[15:20]
    assert (held_commands == held_commands[0]).all()
    moving_commands = commands_of(episode)[25:]  # `PointRobot` has checked each of them
    assert (moving_commands != held_commands[0]).any()


def test_emergency_stop_requires_arming_and_a_new_check():
    runner, driver, _, clock = point_runner(change={"confirm": True})
    stop, stopped = driver.stop, []
    driver.stop = lambda: (stopped.append(clock.now()), stop())
    operator = Operator(runner.supervisor, runner.estop)
    start = clock.now()
    for when, key in ((0.45, "s"), (1.55, " ")):
        clock.call_at(start + when, lambda key=key: operator.press_key(key))
    episode = runner.run_episode(0)
    assert episode.ticks[0].due == pytest.approx(start + 0.5)
    assert episode.ended == (State.FAULT, "emergency stop: space bar")
    assert driver.holding and stopped[0] == pytest.approx(
        start + 1.55
    )  # at once, not at the next tick
    for key in "rs":  # neither key clears a fault
        operator.press_key(key)
        assert runner.supervisor.state is State.FAULT
    operator.press_key("a")
    assert runner.supervisor.state is State.DISARMED and not runner.estop.pressed.is_set()
    operator.press_key("s")
    assert runner.supervisor.state is State.DISARMED  # `prepare` must check the robot first
    runner.prepare()
    operator.press_key("s")
    assert runner.supervisor.state is State.RUNNING


def test_shadow_mode_computes_but_sends_no_commands(tmp_path):
    runner, driver, policy, _ = point_runner(active=False, record=tmp_path / "shadow")
    episode = runner.run_episode(0)
    assert not driver.commands and not any(tick.sent for tick in episode.ticks)
    assert all(tick.command is not None for tick in episode.ticks[1:]) and len(policy.calls) > 5


class Runaway(Wanderer):
    """A policy that moves at 5 per s, which takes several ticks of acceleration."""

    def predict_chunk(self, obs, *, constraints=None, generator=None):
        assert constraints is not None and constraints.project is not None
        chunk = super().predict_chunk(obs, constraints=constraints, generator=generator)
        steps = 0.5 * torch.arange(-1, 15).view(1, 16, 1) * torch.ones(2)
        actions = obs["obs"][:, -1:] + steps
        if (prefix := constraints.prefix) is not None:
            actions[:, : prefix.shape[1]] = prefix
        return replace(chunk, actions=constraints.project(actions))


@pytest.mark.parametrize("mode", ["rtc", "async", "blocking"])
@pytest.mark.parametrize("acceleration", [40, 20])
def test_shadow_mode_clamps_as_if_the_commands_were_sent(mode, acceleration):
    change = {"limits": SECTION["limits"] | {"acceleration": acceleration}}
    runner, driver, _, _ = point_runner(mode=mode, policy=Runaway(), active=False, change=change)
    episode = runner.run_episode(2)
    assert episode.completed and not driver.commands
    commands = np.array([tick.command for tick in episode.ticks if tick.command is not None])
    assert np.abs(np.diff(commands, axis=0)).max() >= 0.45  # The speed of the plan is reached.
    if mode != "async":  # Its plans assume a robot that executed the last plan.
        assert sum(tick.is_clamped for tick in episode.ticks) <= 4


def test_shadow_mode_reports_commands_beyond_the_limits_and_continues():
    policy = Wanderer()
    policy.chunk = lambda actions: 1e9 * torch.ones_like(actions)
    runner, _, _, _ = point_runner(policy=policy, active=False)
    episode = runner.run_episode(0)
    assert episode.completed and sum(tick.is_clamped for tick in episode.ticks) > 35


def test_half_speed_doubles_the_duration():
    runner, _, _, clock = point_runner(speed=0.5)
    start = clock.now()
    episode = runner.run_episode(0)
    assert len(episode.ticks) == 40 and clock.now() - start == pytest.approx(8.0, abs=0.3)
    with pytest.raises(ConfigError, match=r"speed must be in \(0, 1\]"):
        point_runner(speed=2.0)


def test_robot_and_policy_shapes_must_agree():
    policy = Wanderer()
    policy.shape = type(policy.shape)(**{**vars(policy.shape), "obs_dim": 7})
    with pytest.raises(ConfigError, match=r"obs has the shape \(2,\) instead of \(7,\)"):
        point_runner(policy=policy)
    policy = Wanderer()
    policy.shape = type(policy.shape)(**{**vars(policy.shape), "action_dim": 7})
    with pytest.raises(ConfigError, match="actions have 7 entries, but the robot's have 2"):
        point_runner(policy=policy)


def test_robots_without_all_limits_are_refused():
    slow = {k: v for k, v in SECTION["limits"].items() if k != "velocity"}
    for change, error, message in (
        ({"limits": slow}, SafetyError, "velocity must be given"),
        ({"watch": SECTION["watch"] | {"inference_s": 0}}, ConfigError, "inference_s"),
        (
            {"watch": {"max_consecutive_clamped_ticks": 3}},
            ConfigError,
            "needs the option observation_s",
        ),
        ({"rate_hz": 0.0}, ConfigError, r"robot\.rate_hz must be positive"),
    ):
        with pytest.raises(error, match=message):
            Robot(**{**SECTION, **change})
    with pytest.raises(
        ConfigError, match=r"driver\.name=hexapod is unknown; there are replay, ros2, sim"
    ):
        Robot(**{**SECTION, "driver": {"name": "hexapod"}}).make_driver(SimulatedClock())


def test_events_of_the_same_moment_run_in_order():
    clock, order = SimulatedClock(), []
    for name, moment in (("a", 1.0), ("b", 2.0), ("c", 2.0)):
        clock.call_at(moment, lambda name=name: order.append(name))
    clock.wait_until(1.5)
    clock.call_at(2.0, lambda: order.append("d"))
    clock.wait_until(3.0)
    assert order == ["a", "b", "c", "d"]


def test_frames_of_another_resolution_are_resized_as_in_training():
    frame = np.zeros((60, 120, 3), np.uint8)
    frame[:, 30:90] = 200  # the central square
    values = {"obs": np.zeros(7, np.float32), "top": frame}
    driver = SimpleNamespace(read=lambda: Observation(values, np.zeros(2), 1.0))
    shapes = {"obs": (7,), "top": (30, 30, 3)}
    reader = ObservationReader(driver, shapes, 2, SimulatedClock(1.0))  # type: ignore[arg-type]
    reader.read()
    assert reader.rejection == "" and reader.newest is not None
    assert (reader.newest.values["top"] == np.full((30, 30, 3), 200)).all()
    assert values["top"] is frame  # the driver's values stay
    values["top"] = frame.astype(np.float32)
    reader.read()
    assert "top has the shape (60, 120, 3) instead of (30, 30, 3)" in reader.rejection
