"""The control loop: time, plans and their seams, states, watchdogs."""

import io
import math
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from doubles import RATE, SECTION, Wanderer, point_runner
from rich.console import Console

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.action_source import PolicyError
from ebt_policy.real_robot.clock import MonotonicClock, SimulatedClock
from ebt_policy.real_robot.dashboard import announce_changes
from ebt_policy.real_robot.errors import SafetyError
from ebt_policy.real_robot.inference_worker import ThreadWorker
from ebt_policy.real_robot.keyboard import Operator, listen_to_operator
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.supervisor import EStop, State, Supervisor
from ebt_policy.real_robot.watchdogs import LoopWatchdog

DT = 1 / RATE
PATIENCE = 60.0  # seconds until what must happen has not: a busy machine is slow


class Straight(Wanderer):
    """Goes one unit of a tenth a tick, from where the robot is: its plans show their own ticks."""

    def predict_chunk(self, obs, *, constraints=None, generator=None):
        prefix = constraints.prefix
        self.calls.append(constraints)
        ahead = torch.arange(-1, 15).view(1, 16, 1) * torch.tensor([0.1, 0.0])
        chunk = super().predict_chunk(obs)
        actions = obs["obs"][:, -1:] + ahead
        if prefix is not None:
            length = prefix.shape[1]
            actions = prefix[:, -1:] + ahead[:, 1:] - ahead[:, length : length + 1]
            actions = torch.cat([prefix, actions[:, length:]], dim=1)
            actions = torch.cat([actions, actions[:, -1:]], dim=1)[:, :16]
        self.calls.pop()
        return replace(chunk, actions=actions)


def commands_of(episode):
    return np.array([tick.command for tick in episode.ticks])


def test_ticks_are_due_at_fixed_times():
    runner, driver, _, _ = point_runner()
    episode = runner.run_episode(3)
    due = [tick.due for tick in episode.ticks]
    np.testing.assert_allclose(np.diff(due), DT)
    assert len(due) == 40 and episode.overruns == episode.ticks_without_plan == 0
    times = [when for when, _ in driver.commands]
    np.testing.assert_allclose(times[1:], due[1:], atol=1e-9)  # the first waits for its chunk
    assert driver.holding and driver.stops >= 1  # held when the episode is over


def test_a_late_tick_is_followed_at_once_and_lost_ticks_are_left_out():
    runner, _, _, clock = point_runner()
    slow = {5: 0.12, 12: 0.47}  # seconds that something takes in these ticks

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


@pytest.mark.parametrize(
    ("mode", "delay", "stands"),
    [("blocking", 0.25, 2), ("async", 0.25, 0), ("rtc", 0.25, 0), ("blocking", 0.04, 0)],
)
def test_a_robot_stands_only_while_a_blocking_policy_thinks(mode, delay, stands):
    runner = point_runner(mode=mode, delay=delay, policy=Straight())[0]
    episode = runner.run_episode(0)
    ticks_without_plan = [tick.number for tick in episode.ticks if tick.desired is None]
    first = math.ceil(delay / DT) - 1 if delay > 0.05 else 0
    assert ticks_without_plan[:first] == list(
        range(first)
    )  # until the first chunk, every robot stands
    assert (len(ticks_without_plan) > first) == (stands > 0)
    if stands:  # then Ta actions, then it stands again
        assert ticks_without_plan[first : first + stands] == [first + 8 + i for i in range(stands)]


@pytest.mark.parametrize("delay", [0.01, 0.15, 0.25, 0.4])
def test_a_frozen_prefix_leaves_no_seam(delay):
    wanted = {}
    for mode in ("async", "rtc"):
        runner, _, policy, _ = point_runner(mode=mode, delay=delay, policy=Straight())
        episode = runner.run_episode(0)
        moving = [tick for tick in episode.ticks if tick.desired is not None]
        travels = np.diff([tick.command for tick in moving], axis=0)[:, 0]
        wanted[mode] = np.abs(np.diff(travels)).max()
        if mode == "rtc":
            held = [call.prefix for call in policy.calls[7:] if call.prefix is not None]
            committed = max(1, math.ceil(delay / DT - 1e-9))
            assert {p.shape[1] for p in held} == {1 + committed}
    assert wanted["rtc"] < 1e-6
    assert wanted["async"] > 0.01  # the robot lags behind its plan, so a new one begins elsewhere


def test_the_prefix_is_what_was_sent_and_what_will_be():
    runner, _, policy, _ = point_runner(mode="rtc", delay=0.25)
    policy.calls.clear()
    episode = runner.run_episode(0)
    sent = {tick.number: tick.command for tick in episode.ticks}
    prefixes = [call.prefix for call in policy.calls if call.prefix is not None][:3]
    asked = [8 + 2 - 3 + 8 * i for i in range(3)]  # it arrives when 8 were executed
    for start, prefix in zip(asked, prefixes, strict=True):
        executed = np.stack([sent[start - 1 + i] for i in range(prefix.shape[1])])
        np.testing.assert_allclose(prefix[0].numpy(), executed, atol=1e-5)


def test_what_is_limited_in_the_descent_is_not_limited_again():
    free, bound = Wanderer(reach=30.0), Wanderer(reach=30.0)
    original = bound.predict_chunk
    bound.predict_chunk = lambda obs, *, constraints, generator: original(
        obs, constraints=replace(constraints, project=None), generator=generator
    )
    clamped = []
    for policy in (free, bound):
        runner, _, _, _ = point_runner(policy=policy, change={"watch": patient()})
        episode = runner.run_episode(1)
        clamped.append(episode.summary()["clamped_ticks"])
    assert clamped[0] <= 2 < clamped[1]


def patient():
    return SECTION["watch"] | {"max_consecutive_clamped_ticks": 1000}


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
    np.testing.assert_allclose(driver.commands[-1][1], driver.commands[-2][1])  # it stands


def test_a_held_robot_goes_on_from_where_it_stands():
    runner, _, _, clock = point_runner()
    operator = Operator(runner.supervisor, runner.estop)
    start = clock.now()
    clock.at(start + 0.95, lambda: operator.press_key("h"))
    clock.at(start + 1.95, lambda: operator.press_key("r"))
    episode = runner.run_episode(0)
    states = [tick.state for tick in episode.ticks]
    assert states[9] is State.RUNNING and states[12] is State.HOLD and states[-1] is State.RUNNING
    still = commands_of(episode)[15:20]
    assert (still == still[0]).all()
    assert (commands_of(episode)[25:] != still[0]).any()  # and the robot checked every command


def test_starting_stopping_and_arming_again():
    runner, driver, _, clock = point_runner(change={"confirm": True})
    stop, stopped = driver.stop, []
    driver.stop = lambda: (stopped.append(clock.now()), stop())
    operator = Operator(runner.supervisor, runner.estop)
    start = clock.now()
    for when, key in ((0.45, "s"), (1.55, " ")):
        clock.at(start + when, lambda key=key: operator.press_key(key))
    episode = runner.run_episode(0)
    assert episode.ticks[0].due == pytest.approx(start + 0.5)
    assert episode.ended == (State.FAULT, "emergency stop: space bar")
    assert driver.holding and stopped[0] == pytest.approx(
        start + 1.55
    )  # at once, not at the next tick
    for key in "rs":  # neither lets a fault go
        operator.press_key(key)
        assert runner.supervisor.state is State.FAULT
    operator.press_key("a")
    assert runner.supervisor.state is State.DISARMED and not runner.estop.pressed.is_set()
    operator.press_key("s")
    assert runner.supervisor.state is State.DISARMED  # it is to be checked first
    runner.prepare()
    operator.press_key("s")
    assert runner.supervisor.state is State.RUNNING


def test_shadow_computes_and_sends_nothing(tmp_path):
    runner, driver, policy, _ = point_runner(active=False, record=tmp_path / "shadow")
    episode = runner.run_episode(0)
    assert not driver.commands and not any(tick.sent for tick in episode.ticks)
    assert all(tick.command is not None for tick in episode.ticks[1:]) and len(policy.calls) > 5


def test_half_the_speed_takes_twice_the_time():
    runner, _, _, clock = point_runner(speed=0.5)
    start = clock.now()
    episode = runner.run_episode(0)
    assert len(episode.ticks) == 40 and clock.now() - start == pytest.approx(8.0, abs=0.3)
    with pytest.raises(ConfigError, match=r"speed must be in \(0, 1\]"):
        point_runner(speed=2.0)


def test_what_the_robot_gives_must_be_what_the_policy_reads():
    policy = Wanderer()
    policy.shape = type(policy.shape)(**{**vars(policy.shape), "obs_dim": 7})
    with pytest.raises(ConfigError, match=r"obs has the shape \(2,\) instead of \(7,\)"):
        point_runner(policy=policy)
    policy = Wanderer()
    policy.shape = type(policy.shape)(**{**vars(policy.shape), "action_dim": 7})
    with pytest.raises(ConfigError, match="7 numbers in an action, the robot 2"):
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


def test_a_surprised_policy_holds_the_robot(monkeypatch):
    from ebt_policy.policies.energy import EnergyPolicy

    class Surprised(Wanderer, EnergyPolicy):
        __init__ = Wanderer.__init__
        shape = Wanderer.shape
        parameter_count = 0

        def energies(self, obs, chunks):
            return torch.tensor([[7.5, 2.0]])  # the rest of the last plan, and the new one

    monkeypatch.setattr(EnergyPolicy, "__setattr__", object.__setattr__)
    for limit, ends, count in ((6.0, State.RUNNING, 4), (5.0, State.HOLD, 1)):
        runner, _, _, _ = point_runner(policy=Surprised(), max_plan_inconsistency=limit)
        episode = runner.run_episode(0)
        assert episode.ended[0] is ends and len(episode.plan_inconsistencies) == count
        assert set(episode.plan_inconsistencies) == {5.5}
    assert episode.ended[1] == ("plan inconsistency 5.5 exceeds execution.max_plan_inconsistency=5")
    with pytest.raises(ConfigError, match="for energy policies"):
        point_runner(max_plan_inconsistency=5.0)


@pytest.mark.rerun
def test_a_run_as_a_rerun_recording(tmp_path):
    pytest.importorskip("rerun")
    from ebt_policy.real_robot.rerun_log import RerunLog

    runner, _, _, _ = point_runner()
    log = RerunLog(tmp_path / "logs" / "run.rrd")
    log.runner = runner
    runner.loop.observers = [*runner.loop.observers, log]
    runner.run_episode(0)
    log.close()
    content = (tmp_path / "logs" / "run.rrd").read_bytes()
    for name in (b"command/x", b"position/y", b"late_ms", b"chunk_ms", b"energy", b"state"):
        assert name in content, name


# -- with real threads and time ---------------------------------------------------------------


def test_a_thread_predicts_waits_and_leaves_a_hanging_job_behind():
    clock = MonotonicClock()
    worker = ThreadWorker(clock)
    worker.submit(lambda: 7)
    worker.wait(clock.now() + PATIENCE)
    done = worker.take_result()
    assert done is not None and done.value == 7 and worker.take_result() is None
    worker.submit(lambda: 1 / 0)
    worker.wait(clock.now() + PATIENCE)
    done = worker.take_result()
    assert done is not None and isinstance(done.error, ZeroDivisionError)
    blocked = threading.Event()
    worker.submit(blocked.wait)
    worker.wait(clock.now() + 0.02)
    assert worker.take_result() is None
    worker.abandon()
    worker.submit(lambda: 8)
    worker.wait(clock.now() + PATIENCE)
    blocked.set()  # its answer comes late and counts for nothing
    done = worker.take_result()
    assert done is not None and done.value == 8


def test_a_loop_that_hangs_is_stopped_from_another_thread():
    clock, said = SimulatedClock(), []
    watchdog = LoopWatchdog(clock, 0.05, said.append)
    clock.wait_until(1.0)
    watchdog.check()
    assert not said  # it does not beat before it began
    watchdog.beat()
    for moment in (1.04, 1.06, 1.2):
        clock.wait_until(moment)
        watchdog.check()
    assert said == ["the control loop gave no heartbeat for 0.05 s"]  # once
    stopped = threading.Event()
    with LoopWatchdog(MonotonicClock(), 0.05, lambda reason: stopped.set()) as watchdog:
        watchdog.beat()
        assert stopped.wait(PATIENCE)


def test_the_emergency_stop_wakes_the_loop():
    estop, clock = EStop(), MonotonicClock()
    threading.Timer(0.05, lambda: estop.press("button")).start()
    end = clock.now() + PATIENCE
    clock.wait_until(end, estop.pressed)
    assert estop.pressed.is_set() and clock.now() < end
    estop.press("another")
    assert estop.reason == "button"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_are_the_emergency_stop_and_handlers_come_back(name):
    estop = EStop()
    operator = Operator(Supervisor(MonotonicClock()), estop)
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with listen_to_operator(operator):
        signal.raise_signal(number)
        assert estop.reason == ("Ctrl-C" if name == "SIGINT" else name)
        assert estop.pressed.is_set() and operator.quit.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before


def test_a_terminal_that_is_closed_is_the_emergency_stop(monkeypatch):
    import pty

    person, terminal = pty.openpty()
    estop = EStop()
    operator = Operator(Supervisor(MonotonicClock()), estop)
    with open(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with listen_to_operator(operator) as keys:
            assert keys
            os.write(person, b" ")
            assert estop.pressed.wait(PATIENCE) and not operator.quit.is_set()
            os.close(person)
            assert operator.quit.wait(PATIENCE)
    assert estop.reason == "space bar"


def test_what_a_person_is_to_know_is_a_line_when_it_happens():
    said, supervisor = io.StringIO(), Supervisor(SimulatedClock())
    supervisor.transition(State.READY, "checked")
    console = Console(file=said, width=20)
    with announce_changes(supervisor, console, {State.HOLD: "r resumes it"}):
        supervisor.transition(State.RUNNING, "started")
        supervisor.transition(State.HOLD, "no observation for 0.3 s: obs is (2,) instead of [/7]")
        supervisor.transition(State.RUNNING, "resumed by a person")
        supervisor.transition(State.FAULT, "the policy failed (RuntimeError: two\nlines).")
    assert said.getvalue().splitlines() == [
        "held: no observation for 0.3 s: obs is (2,) instead of [/7] (r resumes it)",
        "running: resumed by a person",
        "stopped: the policy failed (RuntimeError: two lines).",
    ]


def test_a_fault_stays_until_a_person_has_looked():
    supervisor = Supervisor(SimulatedClock())
    assert not supervisor.transition(State.RUNNING, "too early")
    for state in (State.READY, State.RUNNING, State.FAULT):
        assert supervisor.transition(state, "on")
    for state in State:
        assert not supervisor.transition(state, "on")
    assert supervisor.rearm() and not supervisor.rearm()
    assert [change.state for change in supervisor.changes][-1] is State.DISARMED


def test_warming_up_fails_where_the_policy_does():
    runner, _, policy, _ = point_runner()

    def fail(actions):
        raise RuntimeError("no GPU")

    policy.chunk = fail
    planner: Planner = runner.source
    with pytest.raises(PolicyError, match="the policy failed \\(RuntimeError: no GPU\\)"):
        planner.warm_up({"obs": np.zeros(2, np.float32)}, np.zeros(2))
