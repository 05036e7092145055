"""The planner: times of predictions, transitions between plans, and committed prefixes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from doubles import RATE, SECTION, Wanderer, point_runner

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.errors import PolicyError
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.supervisor import State

DT = 1 / RATE


class Straight(Wanderer):
    """A policy that moves by 0.1 per tick from the position of the robot.

    The value of an action therefore identifies its tick.
    """

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


@pytest.mark.parametrize(
    ("mode", "delay", "stands"),
    [("blocking", 0.25, 2), ("async", 0.25, 0), ("rtc", 0.25, 0), ("blocking", 0.04, 0)],
)
def test_robot_waits_only_for_blocking_predictions(mode, delay, stands):
    runner = point_runner(mode=mode, delay=delay, policy=Straight())[0]
    episode = runner.run_episode(0)
    ticks_without_plan = [tick.number for tick in episode.ticks if tick.desired is None]
    first = math.ceil(delay / DT) - 1 if delay > 0.05 else 0
    assert ticks_without_plan[:first] == list(
        range(first)
    )  # the robot stands until the first chunk
    assert (len(ticks_without_plan) > first) == (stands > 0)
    if stands:  # it stands again after 8 actions
        assert ticks_without_plan[first : first + stands] == [first + 8 + i for i in range(stands)]


@pytest.mark.parametrize("delay", [0.01, 0.15, 0.25, 0.4])
def test_frozen_prefix_avoids_jumps(delay):
    largest_jump = {}
    for mode in ("async", "rtc"):
        runner, _, policy, _ = point_runner(mode=mode, delay=delay, policy=Straight())
        episode = runner.run_episode(0)
        moving = [tick for tick in episode.ticks if tick.desired is not None]
        travels = np.diff([tick.command for tick in moving], axis=0)[:, 0]
        largest_jump[mode] = np.abs(np.diff(travels)).max()
        if mode == "rtc":
            prefixes = [call.prefix for call in policy.calls[7:] if call.prefix is not None]
            committed = max(1, math.ceil(delay / DT - 1e-9))
            assert {p.shape[1] for p in prefixes} == {1 + committed}
    assert largest_jump["rtc"] < 1e-6
    # The robot lags behind its plan, so a new plan starts at another position.
    assert largest_jump["async"] > 0.01


def test_prefix_equals_the_executed_commands():
    runner, _, policy, _ = point_runner(mode="rtc", delay=0.25)
    policy.calls.clear()
    episode = runner.run_episode(0)
    sent = {tick.number: tick.command for tick in episode.ticks}
    prefixes = [call.prefix for call in policy.calls if call.prefix is not None][:3]
    start_ticks = [8 + 2 - 3 + 8 * i for i in range(3)]  # it arrives after 8 executed actions
    for start, prefix in zip(start_ticks, prefixes, strict=True):
        executed = np.stack([sent[start - 1 + i] for i in range(prefix.shape[1])])
        np.testing.assert_allclose(prefix[0].numpy(), executed, atol=1e-5)


def test_projected_chunks_are_not_clamped_again():
    free, bound = Wanderer(reach=30.0), Wanderer(reach=30.0)
    original = bound.predict_chunk
    bound.predict_chunk = lambda obs, *, constraints, generator: original(
        obs, constraints=replace(constraints, project=None), generator=generator
    )
    clamped = []
    for policy in (free, bound):
        runner, _, _, _ = point_runner(policy=policy, change={"watch": watch_without_clamp_limit()})
        episode = runner.run_episode(1)
        clamped.append(episode.summary()["clamped_ticks"])
    assert clamped[0] <= 2 < clamped[1]


def test_an_inconsistent_plan_holds_the_robot(monkeypatch):
    from ebt_policy.policies.energy import EnergyPolicy

    class Inconsistent(Wanderer, EnergyPolicy):
        __init__ = Wanderer.__init__
        shape = Wanderer.shape
        parameter_count = 0

        def energies(self, obs, chunks):
            return torch.tensor([[7.5, 2.0]])  # the rest of the last plan, and the new one

    monkeypatch.setattr(EnergyPolicy, "__setattr__", object.__setattr__)
    for limit, ends, count in ((6.0, State.RUNNING, 4), (5.0, State.HOLD, 1)):
        runner, _, _, _ = point_runner(policy=Inconsistent(), max_plan_inconsistency=limit)
        episode = runner.run_episode(0)
        assert episode.ended[0] is ends and len(episode.plan_inconsistencies) == count
        assert set(episode.plan_inconsistencies) == {5.5}
    assert episode.ended[1] == ("plan inconsistency 5.5 exceeds execution.max_plan_inconsistency=5")
    with pytest.raises(ConfigError, match="for energy policies"):
        point_runner(max_plan_inconsistency=5.0)


def test_warm_up_raises_errors_of_the_policy():
    runner, _, policy, _ = point_runner()

    def fail(actions):
        raise RuntimeError("no GPU")

    policy.chunk = fail
    planner: Planner = runner.source
    with pytest.raises(PolicyError, match="the policy failed \\(RuntimeError: no GPU\\)"):
        planner.warm_up({"obs": np.zeros(2, np.float32)}, np.zeros(2))


def watch_without_clamp_limit():
    return SECTION["watch"] | {"max_consecutive_clamped_ticks": 1000}


def test_ticks_before_the_first_command_repeat_it():
    planner = object.__new__(Planner)
    first, second = np.zeros(2), np.ones(2)
    planner.plan, planner._sent = None, {5: first, 6: second}
    actions = planner._executed_actions(2, 8)
    np.testing.assert_array_equal(actions, [first, first, first, first, second])
