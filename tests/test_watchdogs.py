"""The watchdog of the control loop, and stops from other threads than the loop's."""

import threading
from pathlib import Path

from doubles import Wanderer, point_runner

from ebt_policy.real_robot.clock import MonotonicClock, SimulatedClock
from ebt_policy.real_robot.episode_series import EpisodeSeries, exit_code
from ebt_policy.real_robot.keyboard import Operator
from ebt_policy.real_robot.run_options import RunOptions
from ebt_policy.real_robot.supervisor import State
from ebt_policy.real_robot.watchdogs import LoopWatchdog

TIMEOUT_S = 60.0  # seconds to wait for an expected event; long, as a busy machine is slow


def test_hanging_loop_is_stopped_by_the_watchdog():
    clock, messages = SimulatedClock(), []
    watchdog = LoopWatchdog(clock, 0.05, messages.append)
    clock.wait_until(1.0)
    watchdog.check()
    assert not messages  # inactive before the first heartbeat
    watchdog.beat()
    for moment in (1.04, 1.06, 1.2):
        clock.wait_until(moment)
        watchdog.check()
    assert messages == ["the control loop gave no heartbeat for 0.05 s"]  # reported once
    stopped = threading.Event()
    with LoopWatchdog(MonotonicClock(), 0.05, lambda reason: stopped.set()) as watchdog:
        watchdog.beat()
        assert stopped.wait(TIMEOUT_S)


def hang_once(runner, driver, react):
    """Let a read of the driver last longer than the heartbeat, and call ``react`` meanwhile."""
    at, clock = driver.clock.now() + 1.0, driver.clock
    hung = []

    def hang(observation):
        if clock.now() >= at and not hung:
            hung.append(clock.now())
            clock.wait_until(clock.now() + 0.1)
            runner.loop.fault("the control loop gave no heartbeat")  # called by the watchdog
            react()
        return observation

    driver.transform = hang
    return hung


def test_no_command_follows_a_stop_from_another_thread():
    runner, driver, _, _ = point_runner()
    hung = hang_once(runner, driver, lambda: None)
    episode = runner.run_episode(0)
    assert episode.ended == (State.FAULT, "the control loop gave no heartbeat")
    assert driver.commands and driver.commands[-1][0] < hung[0]
    policy = Wanderer()
    runner, driver, _, _ = point_runner(policy=policy)
    stopped_at = []

    def stop_while_computing(actions):
        if driver.clock.now() >= 101.0 and not stopped_at:
            runner.loop.fault("the control loop gave no heartbeat")
            stopped_at.append(len(driver.commands))
        return actions

    policy.chunk = stop_while_computing
    episode = runner.run_episode(0)
    assert episode.ended[0] is State.FAULT and len(driver.commands) == stopped_at[0]
    assert episode.ticks[-1].command is None and not episode.ticks[-1].sent


def test_a_stop_during_a_command_is_repeated():
    runner, driver, _, _ = point_runner()
    send = driver.send

    def stop_first(command, due):
        if len(driver.commands) == 5:
            runner.loop.fault("the control loop gave no heartbeat")
        send(command, due)
        driver.stops = 0

    driver.send = stop_first
    stops = []
    runner.loop.observers = [lambda tick: stops.append(driver.stops)]
    runner.run_episode(0)
    assert stops[-1] == 1 and driver.holding


def test_a_robot_that_is_rearmed_while_the_loop_hangs_is_checked_again():
    runner, driver, _, _ = point_runner()
    operator = Operator(runner.supervisor, runner.estop)
    hung = hang_once(runner, driver, lambda: operator.press_key("a"))
    options = RunOptions(checkpoint="x", episodes=1)
    series = EpisodeSeries(runner, options, Path(), operator, has_keys=True)
    series.run()
    first, second = series.results
    assert first.ended == (State.FAULT, "the control loop gave no heartbeat")
    assert not first.kept and first.acknowledged and len(first.ticks) < 15
    assert not [when for when, _ in driver.commands if hung[0] <= when < second.ticks[0].due]
    reasons = [change.reason for change in runner.supervisor.changes]
    assert reasons.count("checked and warmed up") == 2
    assert second.completed and len(driver.commands) > 40 and exit_code(series.results) == 0
