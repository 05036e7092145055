"""Costs in the control loop: from configuration to the recording, and costs that fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from doubles import Wanderer, point_runner

from ebt_policy.data.episode_store import read_episodes
from ebt_policy.errors import ConfigError
from ebt_policy.policies import KeepOut, load_policy
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.episode_runner import EpisodeRunner, observation_shapes, tick_seconds
from ebt_policy.real_robot.errors import PolicyError
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.inference_worker import SimulatedWorker
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.report import markdown_table, summarize
from ebt_policy.real_robot.robots import load_robot
from ebt_policy.real_robot.supervisor import State

REGION = {"name": "keep_out", "center": [0, 0], "radius": 4}


def test_configured_costs_reach_predictions_recordings_and_reports(tmp_path):
    store = tmp_path / "recording"
    runner, _, policy, _ = point_runner(change={"costs": [REGION]}, record=store)
    episode = runner.run_episode(0)
    assert all(isinstance(call.costs[0], KeepOut) for call in policy.calls)
    assert episode.completed and len(episode.plan_costs) >= 2 and max(episode.plan_costs) > 0
    recorded = read_episodes(store).arrays["cost"]
    assert set(recorded.tolist()) <= {0.0, *episode.plan_costs} and recorded.any()
    summary = summarize([episode])
    assert summary["plan_cost"]["p99"] <= max(episode.plan_costs)
    assert "| cost of a plan, nats | p50" in markdown_table(summary)


def test_without_costs_nothing_is_recorded(tmp_path):
    store = tmp_path / "recording"
    runner, _, _, _ = point_runner(record=store)
    episode = runner.run_episode(0)
    assert "cost" not in read_episodes(store).arrays
    assert summarize([episode])["plan_cost"] is None


def test_a_cost_that_fails_later_holds_the_robot():
    calls = []

    def cost(chunks, obs):
        calls.append(1)
        return torch.full(chunks.shape[:2], math.nan if len(calls) > 10 else 0.0)

    runner, robot, _, _ = point_runner(costs=[cost])
    episode = runner.run_episode(0)
    state, reason = episode.ended
    assert state is State.HOLD
    assert reason == "the cost cost must return finite numbers of at least 0, got nan."
    last = [command for _, command in robot.commands[-3:]]  # it brakes and stands
    np.testing.assert_allclose(last[0], last[-1], atol=1e-9)


def test_a_cost_that_always_fails_is_an_error_before_motion():
    def cost(chunks, obs):
        raise KeyError("obstacle")

    with pytest.raises(PolicyError, match=r"the cost cost failed \(KeyError: 'obstacle'\)"):
        point_runner(costs=[cost])


class WithoutCandidates(Wanderer):
    supports_costs = False


def test_wrong_options_are_errors_before_motion():
    with pytest.raises(ConfigError, match=r"this policy does not support robot.costs"):
        point_runner(policy=WithoutCandidates(), change={"costs": [REGION]})
    with pytest.raises(ConfigError, match=r"robot.costs\[0\] needs the option radius"):
        point_runner(change={"costs": [{"name": "keep_out", "center": [0, 0]}]})
    for options in ({"budget_nats": -1.0}, {"max_rounds": 0}):
        with pytest.raises(ConfigError, match=f"execution.{next(iter(options))}"):
            ExecutionOptions(**options)
    with pytest.raises(ConfigError, match=r"budget_nats and execution.max_rounds need robot.costs"):
        simulated_push_t([], max_rounds=2)


def simulated_push_t(costs, **execution):
    """Return a prepared runner of `pretrained:push_t` on a simulated clock."""
    robot = load_robot("sim_push_t", "robot.episode_s=8")
    clock, policy = SimulatedClock(), load_policy("pretrained:push_t")
    policy.configure_inference(num_candidates=2)
    planner = Planner(
        policy, robot.safety, tick_seconds(robot, 1.0), SimulatedWorker(clock, lambda: 0.05),
        clock, ExecutionOptions(**execution), costs,
    )  # fmt: skip
    driver = robot.make_driver(clock)
    runner = EpisodeRunner(
        robot, driver, planner, clock, observation_shapes(policy), watchdog=False
    )
    runner.prepare()
    return runner


def test_a_simulated_robot_avoids_a_region():
    """The region lies on the path that the policy takes without it."""
    free = simulated_push_t([]).run_episode(5)
    commands = np.array([tick.command for tick in free.ticks])
    center = commands[len(commands) // 2]
    avoiding = simulated_push_t([KeepOut(center.tolist(), 30, margin=5)]).run_episode(5)
    assert avoiding.completed
    distances = [np.linalg.norm(tick.command - center) for tick in avoiding.ticks]
    inside = np.linalg.norm(commands[0] - center) < 30
    assert not inside and min(distances) > 28
