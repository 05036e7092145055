"""After any fault the robot stops in time and within its limits, and the episode is recorded.

`doubles.PointRobot` checks every command when it arrives.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from doubles import RATE, SECTION, Wanderer, point_runner

from ebt_policy.data.episode_store import read_episodes
from ebt_policy.real_robot.drivers.base import Observation
from ebt_policy.real_robot.errors import DriverError
from ebt_policy.real_robot.recorder import Recorder
from ebt_policy.real_robot.supervisor import State

DT = 1 / RATE
RUNS, CLAMPS = 480, 20  # about ten runs of each fault in each mode


@dataclass
class Fault:
    """The expected reaction to a fault.

    Args:
        within: seconds until the robot must brake, from its watchdog times and ticks.
        ends: state at the end of the episode; None for any state.
        reason: part of the reason of that state.
    """

    within: float
    ends: State | None
    reason: str


def obs_stop(runner, driver, policy, at, rng):
    frozen = []

    def transform(observation):
        if driver.clock.now() < at:
            return observation
        frozen.append(observation)
        return frozen[0]

    driver.transform = transform
    return Fault(0.25 + 2 * DT, State.HOLD, "no observation for 0.25 s")


def obs_stop_for_good(runner, driver, policy, at, rng):
    driver.transform = lambda observation: observation if driver.clock.now() < at else None
    return Fault(0.25 + 2 * DT, State.HOLD, "no observation for 0.25 s")


def obs_late(runner, driver, policy, at, rng):
    age = rng.uniform(0.3, 2.0)

    def transform(observation):
        late = driver.clock.now() >= at
        return Observation(observation.values, observation.position, observation.stamp - age * late)

    # Observations that are older than the newest are rejected, so the newest is soon too old.
    driver.transform = transform
    return Fault(0.25 + 2 * DT, State.HOLD, "out of order")


def obs_out_of_order(runner, driver, policy, at, rng):
    count = [0]

    def transform(observation):
        count[0] += driver.clock.now() >= at
        back = 0.15 if count[0] % 2 else 0.0
        return Observation(observation.values, observation.position, observation.stamp - back)

    driver.transform = transform  # every second one is rejected; the others are recent enough
    return Fault(math.inf, None, "")


def obs_nan(runner, driver, policy, at, rng):
    def transform(observation):
        if driver.clock.now() < at:
            return observation
        name = rng.choice(["obs", "position"])
        broken = np.full(2, [np.nan, np.inf, -np.inf][rng.integers(3)])
        if name == "obs":
            return Observation({"obs": broken}, observation.position, observation.stamp)
        return Observation(observation.values, broken, observation.stamp)

    driver.transform = transform
    return Fault(0.25 + 2 * DT, State.HOLD, "has NaN or infinity")


def obs_wrong_shape(runner, driver, policy, at, rng):
    broken = [{"obs": np.zeros(3)}, {"state": np.zeros(2)}, {}][rng.integers(3)]

    def transform(observation):
        if driver.clock.now() < at:
            return observation
        return Observation(broken, observation.position, observation.stamp)

    driver.transform = transform
    return Fault(0.25 + 2 * DT, State.HOLD, "no observation for 0.25 s: the observation")


def policy_raises(runner, driver, policy, at, rng):
    def chunk(actions):
        if driver.clock.now() >= at:
            raise RuntimeError("out of memory")
        return actions

    policy.chunk = chunk
    return Fault(8 * DT + 2 * DT + 0.6, State.FAULT, "RuntimeError: out of memory")


def policy_nan(runner, driver, policy, at, rng):
    policy.chunk = lambda a: a * math.nan if driver.clock.now() >= at else a
    return Fault(8 * DT + 2 * DT + 0.6, State.FAULT, "predicted NaN or infinity")


def policy_wrong_shape(runner, driver, policy, at, rng):
    policy.chunk = lambda a: a[:, :7] if driver.clock.now() >= at else a
    return Fault(8 * DT + 2 * DT + 0.6, State.FAULT, "instead of (1, 16, 2)")


def policy_hangs(runner, driver, policy, at, rng):
    usual = runner.source.worker._delay
    runner.source.worker._delay = lambda: math.inf if driver.clock.now() >= at else usual()
    return Fault(8 * DT + 0.6 + 2 * DT, State.HOLD, "the policy did not answer for 0.6 s")


def policy_wild(runner, driver, policy, at, rng):
    def chunk(actions):
        wild = 1e9 * torch.randn(actions.shape)
        return actions if driver.clock.now() < at else wild

    policy.chunk = chunk  # after the projection, so the loop must clamp
    # In blocking mode the robot also waits between chunks, for up to half as many ticks.
    return Fault((8 + 1.6 * CLAMPS + 6) * DT, State.HOLD, f"had to be clamped for {CLAMPS} ticks")


def driver_disconnects(runner, driver, policy, at, rng):
    call = rng.choice(["read", "send"])
    usual = getattr(driver, call)
    error = [DriverError, OSError][rng.integers(2)]

    def lost(*arguments):
        if driver.clock.now() >= at:
            raise error("the cable was pulled.")
        return usual(*arguments)

    setattr(driver, call, lost)
    return Fault(2 * DT, State.FAULT, "the cable was pulled")


def emergency_stop(runner, driver, policy, at, rng):
    driver.clock.call_at(at, lambda: runner.estop.press("button"))
    return Fault(0.0, State.FAULT, "emergency stop: button")


def emergency_stop_while_computing(runner, driver, policy, at, rng):
    def chunk(actions):
        if driver.clock.now() >= at:
            runner.estop.press("button")
        return actions

    policy.chunk = chunk
    return Fault(8 * DT + 2 * DT + 0.6, State.FAULT, "emergency stop: button")


def loop_dies(runner, driver, policy, at, rng):
    def die(tick):
        if driver.clock.now() >= at:
            raise SystemExit("killed")

    runner.loop.observers = [*runner.loop.observers, die]
    return Fault(0.25 + 2 * DT, State.RUNNING, "started")


def loop_hangs(runner, driver, policy, at, rng):
    stalled = []

    def hang(tick):
        if driver.clock.now() >= at and not stalled:
            stalled.append(driver.clock.now())
            driver.clock.wait_until(driver.clock.now() + 1.0)
            assert driver.holding  # because of its own watchdog
            assert driver.clock.now() - driver._last_command_at >= 0.25

    runner.loop.observers = [*runner.loop.observers, hang]
    return Fault(math.inf, None, "")  # a prediction may also have timed out


FAULTS = [
    obs_stop,
    obs_stop_for_good,
    obs_late,
    obs_out_of_order,
    obs_nan,
    obs_wrong_shape,
    policy_raises,
    policy_nan,
    policy_wrong_shape,
    policy_hangs,
    policy_wild,
    driver_disconnects,
    emergency_stop,
    emergency_stop_while_computing,
    loop_dies,
    loop_hangs,
]


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))]
)
def test_random_faults_stop_the_robot_in_time(part, tmp_path):
    for run in range(part, RUNS, 8):
        rng = np.random.default_rng(run)
        kind = FAULTS[run % len(FAULTS)]
        mode = rng.choice(["blocking", "async", "rtc"])
        runner, driver, policy, clock = point_runner(
            mode=str(mode),
            policy=Wanderer(reach=3.0),
            delay=lambda rng=rng: rng.uniform(0.005, 0.4),
            change={
                "episode_s": 8.0,
                "watch": SECTION["watch"] | {"max_consecutive_clamped_ticks": CLAMPS},
            },
            record=tmp_path / f"{run}",
        )
        at = clock.now() + rng.uniform(0.8, 3.0)
        fault = kind(runner, driver, policy, at, rng)
        episode = None
        try:
            episode = runner.run_episode(run)
        except SystemExit:
            assert kind is loop_dies
        label = f"run {run}, {kind.__name__}, {mode}"
        assert driver.holding, label
        if episode is not None:
            assert fault.ends in (None, episode.ended[0]), (label, episode.ended)
            assert fault.reason in episode.ended[1], (label, episode.ended)
        if math.isfinite(fault.within) and episode is not None:
            braking = 8.0 / 40 + DT  # from full speed, plus a tick
            rest = time_of_rest(driver, at)
            assert rest <= at + fault.within + braking + 1e-6, (label, rest - at)
        check_recording(tmp_path / f"{run}", at, runner, label)


def time_of_rest(driver, at):
    """Return the time of the last command that moved the robot, at least ``at``."""
    moved = [
        when
        for (when, command), (_, before) in zip(
            driver.commands[1:], driver.commands[:-1], strict=True
        )
        if np.abs(command - before).max() > 1e-9
    ]
    return max([*moved, at])


def check_recording(store, at, runner, label):
    runner.close()
    if not store.exists():  # after a crash, the next program recovers the episode
        recovered = Recorder(store, runner.recorder.layout).recovered
        assert recovered > 0, label
    episodes = read_episodes(store)
    assert len(episodes) == 1, label
    seconds = episodes.arrays["time"]
    assert seconds[0] == pytest.approx(seconds.min()) and seconds[-1] >= at - 0.5 - DT, label
    np.testing.assert_allclose(np.diff(episodes.arrays["tick"]).min(), 1)


def test_reconnected_robot_waits_for_the_operator():
    runner, driver, _, clock = point_runner()
    start = clock.now()
    away = (start + 1.0, start + 2.0)
    driver.transform = lambda o: None if away[0] <= clock.now() < away[1] else o
    clock.call_at(start + 3.0, lambda: runner.supervisor.transition(State.RUNNING, "a person"))
    episode = runner.run_episode(0)
    moving = [tick.due - start for tick in episode.ticks if tick.state is State.RUNNING]
    assert 1.0 < max(t for t in moving if t < 2.9) < 1.4 and min(t for t in moving if t > 2) >= 2.99
    assert episode.ended[0] is State.RUNNING


def test_robot_that_does_not_follow_is_held():
    runner, driver, _, clock = point_runner()
    stuck = clock.now() + 1.0
    usual = driver._pass_time

    def pass_time():
        position = driver._position.copy()
        usual()
        if clock.now() >= stuck:
            driver._position = position

    driver._pass_time = pass_time
    episode = runner.run_episode(0)
    assert episode.ended[0] is State.HOLD and "does not follow its commands" in episode.ended[1]
    moved = np.array([command for when, command in driver.commands if when >= stuck])
    assert len(moved) > 1
    assert (np.abs(moved - driver._position) <= 3 + 1e-6).all()  # max_tracking_error
