"""A policy on a server as the policy of a robot: connection, errors, reconnection."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import camera_policies
import pytest
import torch
from doubles import Wanderer, point_runner
from serving import serving
from tiny_policies import build, observe

from ebt_policy.errors import ConfigError, UserError
from ebt_policy.policies import ChunkConstraints, PolicyUnavailable
from ebt_policy.real_robot.keyboard import Operator
from ebt_policy.real_robot.supervisor import State
from ebt_policy.serving import remote_policy
from ebt_policy.serving.remote_policy import RemotePolicy


@contextmanager
def connected(policy, timeout_s=10.0, **options):
    with serving(policy, **options) as (address, _):
        remote = RemotePolicy(address, timeout_s)
        try:
            yield remote
        finally:
            remote.close()


def wait_until(condition, seconds=10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.01)


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_remote_policy_predicts_like_the_policy():
    policy = build("flow")
    prefix = torch.rand(1, 4, 2) * 100 + 200
    with connected(policy) as remote:
        assert remote.shape == policy.shape and remote.parameter_count == policy.parameter_count
        constraints = ChunkConstraints(prefix=prefix, deadline_s=5.0)
        chunk = remote.predict_chunk(observe(1), constraints=constraints, generator=seeded())
        assert remote.server_timing["infer_ms"] > 0
    seed = int(torch.randint(2**63 - 1, (), generator=seeded()))
    expected = policy.predict_chunk(observe(1), constraints=constraints, generator=seeded(seed))
    torch.testing.assert_close(chunk.actions, expected.actions, atol=1e-3, rtol=0)
    torch.testing.assert_close(chunk.energy, expected.energy, atol=1e-3, rtol=1e-4)
    assert torch.equal(chunk.steps_used, expected.steps_used)


def test_the_answer_is_moved_within_the_limits_of_the_robot():
    with connected(build("bc")) as remote:
        free = remote.predict_chunk(observe(1)).actions
        limit = free.median()
        limited = remote.predict_chunk(
            observe(1), constraints=ChunkConstraints(project=lambda x: x.clamp(max=limit))
        ).actions
    assert torch.equal(limited, free.clamp(max=limit)) and not torch.equal(limited, free)
    assert torch.equal(free[:, 0], free[:, 1])  # the action of the past


def test_camera_frames_are_sent():
    policy = camera_policies.build("bc")
    obs = camera_policies.observe(1)
    with connected(policy) as remote:
        chunk = remote.predict_chunk(obs)
    torch.testing.assert_close(
        chunk.actions[:, 1:], policy.predict_chunk(obs).actions[:, 1:], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:8000", "policy must be an address such as ws://127.0.0.1:8000"),
        ("ws://127.0.0.1:9", "cannot be used: no server listens there; start it with ebt-serve"),
        ("ws://", "cannot be used"),
        ("ws://127.0.0.1:99999", "cannot be used"),
    ],
)
def test_a_server_that_cannot_be_reached_is_an_error(address, words):
    with pytest.raises(ConfigError, match=words):
        RemotePolicy(address, 1.0)


def test_a_refused_client_learns_about_the_token(monkeypatch):
    with serving(build("bc"), token="secret") as (address, _):
        with pytest.raises(ConfigError, match=r"401.*; set EBT_POLICY_TOKEN to the token"):
            RemotePolicy(address, 1.0)
        monkeypatch.setenv("EBT_POLICY_TOKEN", "secret")
        RemotePolicy(address, 1.0).close()


def test_an_error_of_the_server_is_raised():
    with connected(build("bc")) as remote, pytest.raises(UserError, match="contains NaN"):
        remote.predict_chunk({"obs": torch.full((1, 2, 20), torch.nan)})


def test_a_restarted_server_is_found_again():
    policy = build("bc")
    with serving(policy) as (address, _):
        remote = RemotePolicy(address, 10.0)
        remote.predict_chunk(observe(1))
    with pytest.raises(PolicyUnavailable, match=r"the connection to ws://.* was lost"):
        remote.predict_chunk(observe(1))
    assert not remote.is_available
    with pytest.raises(PolicyUnavailable, match="is not connected"):
        remote.predict_chunk(observe(1))
    with serving(policy, port=int(address.rpartition(":")[2])):
        wait_until(lambda: remote.is_available)
        remote.predict_chunk(observe(1))
        remote.close()


def test_a_server_with_another_policy_is_not_used(monkeypatch):
    monkeypatch.setattr(remote_policy, "RETRY_S", 0.05)
    policy, other = build("bc"), build("bc")
    with torch.no_grad():
        next(other.parameters()).add_(1.0)  # equal shapes, other weights
    with serving(policy) as (address, _):
        remote = RemotePolicy(address, 10.0)
    with pytest.raises(PolicyUnavailable):
        remote.predict_chunk(observe(1))
    port = int(address.rpartition(":")[2])
    reports: list[str] = []
    with serving(other, port=port, report=reports.append):
        wait_until(lambda: sum("closed" in line for line in reports) >= 3)
        assert not remote.is_available
    with serving(policy, port=port):
        wait_until(lambda: remote.is_available)
        remote.close()
    assert not remote.is_available


def blocked(policy):
    """Make the predictions of a policy wait for an event, which is returned."""
    release, predict = threading.Event(), policy.predict_chunk

    def wait(obs, **arguments):
        release.wait(10)
        return predict(obs, **arguments)

    policy.predict_chunk = wait
    return release


def test_a_late_answer_is_not_taken_for_the_next_one():
    policy = build("bc")
    predict, release = policy.predict_chunk, blocked(policy)
    with connected(policy, timeout_s=0.2) as remote:
        with pytest.raises(PolicyUnavailable, match=r"did not answer for 0.2 s"):
            remote.predict_chunk(observe(1, seed=1))
        remote._timeout_s = 10.0
        release.set()
        wait_until(lambda: remote.is_available)
        actions = remote.predict_chunk(observe(1, seed=2)).actions
        expected = predict(observe(1, seed=2)).actions
        torch.testing.assert_close(actions[:, 1:], expected[:, 1:], atol=1e-3, rtol=0)


def test_a_server_that_accepts_but_does_not_answer_is_not_available():
    policy = build("bc")
    release = blocked(policy)
    with connected(policy, timeout_s=0.1) as remote:
        with pytest.raises(PolicyUnavailable):
            remote.predict_chunk(observe(1))
        time.sleep(1.0)
        assert not remote.is_available
        remote._timeout_s = 10.0
        release.set()
        wait_until(lambda: remote.is_available)


def test_a_request_that_the_loop_gave_up_does_not_disturb_the_next_one():
    policy = build("bc")
    predict, release = policy.predict_chunk, blocked(policy)
    with connected(policy) as remote, ThreadPoolExecutor(2) as threads:
        first = threads.submit(remote.predict_chunk, observe(1, seed=1))
        wait_until(remote._lock.locked)
        second = threads.submit(remote.predict_chunk, observe(1, seed=2))
        time.sleep(0.1)
        release.set()
        for seed, future in ((1, first), (2, second)):
            expected = predict(observe(1, seed=seed)).actions
            actions = future.result(10).actions
            torch.testing.assert_close(actions[:, 1:], expected[:, 1:], atol=1e-3, rtol=0)


def test_a_policy_with_one_observation_step_is_served():
    policy = build("bc", n_obs_steps=1)
    obs = {"obs": observe(1)["obs"][:, :1]}
    with connected(policy) as remote:
        actions = remote.predict_chunk(obs).actions
    torch.testing.assert_close(actions, policy.predict_chunk(obs).actions, atol=1e-3, rtol=0)


# -- the robot --------------------------------------------------------------------------------


class Flaky(Wanderer):
    """A policy that cannot be reached while `is_available` is False."""

    is_available = True

    def predict_chunk(self, obs, **arguments):
        if not self.is_available:
            raise PolicyUnavailable("ws://robot-gpu:8000 is not connected")
        return super().predict_chunk(obs, **arguments)


def run_with_outage(runner, clock, policy, start=1.0, end=2.0):
    states = []

    def watch(tick):
        now = tick.due - 100.0
        policy.is_available = not start <= now < end
        if tick.state is State.READY:
            runner.supervisor.transition(State.RUNNING, "started by a person")
        states.append(tick.state)

    runner.loop.observers = [*runner.loop.observers, watch]
    result = runner.run_episode(0)
    return result, states


def test_the_robot_is_held_until_the_server_is_back():
    policy = Flaky()
    runner, _, _, clock = point_runner(policy=policy)
    result, states = run_with_outage(runner, clock, policy)
    assert [(c.state, c.reason) for c in runner.supervisor.changes if c.state is State.HOLD] == [
        (State.HOLD, "ws://robot-gpu:8000 is not connected")
    ]
    held = [i for i, state in enumerate(states) if state is State.HOLD]
    assert held and states[-1] is State.RUNNING and max(held) < len(states) - 5
    assert "the policy is available again" in [c.reason for c in runner.supervisor.changes]
    assert result.ended[0] is State.RUNNING


def test_a_robot_that_a_person_starts_is_resumed_by_the_person():
    policy = Flaky()
    runner, _, _, clock = point_runner(policy=policy, change={"confirm": True})
    result, states = run_with_outage(runner, clock, policy)
    assert states[-1] is State.HOLD and result.ended[0] is State.HOLD


def test_a_robot_that_a_person_holds_meanwhile_is_not_resumed():
    policy = Flaky()
    runner, _, _, clock = point_runner(policy=policy)
    operator = Operator(runner.supervisor, runner.estop)

    def press(tick):
        if tick.state is State.HOLD:
            operator.press_key("h")

    runner.loop.observers = [*runner.loop.observers, press]
    _, states = run_with_outage(runner, clock, policy)
    assert states[-1] is State.HOLD
    operator.press_key("r")
    assert runner.supervisor.state is State.RUNNING


def test_a_robot_that_was_held_for_another_reason_is_not_resumed():
    policy = Flaky()
    runner, driver, _, clock = point_runner(policy=policy)
    driver.transform = lambda observation: None if 101 < clock.now() < 102 else observation
    result, states = run_with_outage(runner, clock, policy, start=1.4, end=1.8)
    assert states[-1] is State.HOLD and "no observation" in result.ended[1]


def test_a_robot_without_observations_stays_held_when_the_server_is_back():
    policy = Flaky()
    runner, driver, _, clock = point_runner(policy=policy)
    driver.transform = lambda observation: None if 101.9 < clock.now() < 103 else observation
    result, states = run_with_outage(runner, clock, policy, start=1.0, end=2.5)
    reasons = [change.reason for change in runner.supervisor.changes]
    assert "ws://robot-gpu:8000 is not connected" in reasons
    assert states[-1] is State.HOLD and "no observation" in result.ended[1]
    assert len(reasons) < 10


@pytest.mark.slow
def test_a_server_that_is_killed_and_restarted_under_a_running_robot(tmp_path):
    command = [sys.executable, "-m", "ebt_policy.serve", "checkpoint=pretrained:push_t"]

    def start(port):
        process = subprocess.Popen(
            [*command, f"port={port}", "device=cpu"], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        for line in process.stdout:
            if "serving at" in line:
                return process, line.split()[2].rstrip(";")
        raise AssertionError("the server did not start")

    server, address = start(0)
    robot = subprocess.Popen(
        [sys.executable, "-m", "ebt_policy.real_robot.run", "robot=sim_push_t",
         "robot.episode_s=600", f"policy={address}", "live=false", f"output={tmp_path / 'run'}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip

    def read_until(words):
        for line in robot.stdout:
            if words in line:
                return
        raise AssertionError(f"the robot did not print {words}")

    try:
        read_until("ready")
        time.sleep(2)
        server.send_signal(signal.SIGKILL)
        server.wait()
        read_until("was lost")
        server, _ = start(int(address.rpartition(":")[2]))
        read_until("the policy is available again")
        time.sleep(1)
        robot.send_signal(signal.SIGINT)
        robot.communicate(timeout=30)
    finally:
        robot.kill()
        server.send_signal(signal.SIGTERM)
    assert robot.returncode == 3  # Ctrl-C is an emergency stop.
    output = server.communicate(timeout=30)[0]
    assert server.returncode == 0 and "requests, 0 errors" in output
