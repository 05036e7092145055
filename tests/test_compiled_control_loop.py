"""A policy in the control loop is compiled once for all prefixes, motions and ticks."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.speed import SHAPE, make
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.episode_runner import EpisodeRunner, observation_shapes, tick_seconds
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.inference_worker import SimulatedWorker
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.robots import load_robot


def runner_with(policy, execution):
    robot, clock = load_robot("sim_push_t", "robot.episode_s=8"), SimulatedClock()
    delays = iter(np.random.default_rng(0).uniform(0.02, 0.35, 1000))  # prefixes of 1 to 4 ticks
    planner = Planner(
        policy, robot.safety, tick_seconds(robot, 1.0),
        SimulatedWorker(clock, lambda: next(delays)), clock, execution,
    )  # fmt: skip
    driver, shapes = robot.make_driver(clock), observation_shapes(policy)
    return EpisodeRunner(robot, driver, planner, clock, shapes, watchdog=False)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_control_loop_does_not_recompile_or_fall_back_to_eager():
    torch._dynamo.reset()
    counters.clear()
    shape = {**SHAPE, "max_prefix_len": 6}
    policy = make("ebt", "4xs", torch.device("cpu"), shape=shape).eval().requires_grad_(False)
    policy.configure_inference(steps=2, num_candidates=2)
    policy.compile_prediction()
    compiled = policy._compiled
    for warm in (False, True):
        policy._compiled, runner = compiled, runner_with(policy, ExecutionOptions(warm=warm))
        runner.prepare()
        calls: list[int] = []
        policy._compiled = lambda *arguments, calls=calls: calls.append(1) or compiled(*arguments)
        num_frames = counters["frames"]["total"]
        with torch._dynamo.config.patch(error_on_recompile=True):
            result = runner.run_episode(3)
        assert result.completed and len(calls) >= 10
        assert len(calls) >= len(result.latencies)
        assert counters["frames"]["total"] == num_frames and not counters["graph_break"]
