"""Test doubles of a robot and a policy, on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import ChunkConstraints
from ebt_policy.policies.cost_evaluation import ChunkCosts
from ebt_policy.policies.costs import CostFunction
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.drivers.base import Observation, SimulatedDriver
from ebt_policy.real_robot.episode_runner import EpisodeRunner, observation_shapes, tick_seconds
from ebt_policy.real_robot.errors import DriverError
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.inference_worker import SimulatedWorker
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.robots import Robot

RATE = 10
SECTION: dict[str, Any] = {
    "name": "point",
    "driver": {"name": "sim"},
    "rate_hz": RATE,
    "episode_s": 4.0,
    "action": ["x", "y"],
    "limits": {
        "position": [-10, 10],
        "velocity": 8,
        "acceleration": 40,
        "max_tracking_error": 3,
        "workspace": {"x": [-9, 9]},
    },
    "watch": {
        "observation_s": 0.25,
        "inference_s": 0.6,
        "command_s": 0.25,
        "heartbeat_s": 1.0,
        "max_consecutive_clamped_ticks": 15,
    },
    "confirm": False,
}


class PointRobot(SimulatedDriver):
    """A simulated point robot that asserts that each command is within its limits.

    Attributes:
        transform: function that `read` applies to observations; tests replace it. It may raise.
        gone: whether the robot is disconnected.
        commands: all commands that were sent, as (time, command).
        stops: number of calls of `stop`.
    """

    def __init__(self, robot: Robot, clock: SimulatedClock, dt: float) -> None:
        self.robot, self.clock, self.dt = robot, clock, dt
        self.transform: Callable[[Observation], Observation | None] = lambda observation: (
            observation
        )
        self.gone = False
        self.commands: list[tuple[float, np.ndarray]] = []
        self.stops = 0
        self.closed = False
        self.reset(0)

    def connect(self) -> None:
        pass

    def reset(self, seed: int) -> None:
        self._position = np.random.default_rng(seed).uniform(-5, 5, 2)
        self._hold()
        self._time = self._last_command_at = self.clock.now()

    @property
    def score(self) -> float:
        return 0.0

    @property
    def solved(self) -> bool:
        return False

    @property
    def holding(self) -> bool:
        """Whether the robot holds its position instead of following commands."""
        self._pass_time()
        return self._holding

    def _pass_time(self) -> None:
        now = self.clock.now()
        if not self._holding and now - self._last_command_at > self.robot.timeouts.command_s:
            self._hold()
        step = min((now - self._time) / 0.05, 1.0)
        self._position = self._position + step * (self._target - self._position)
        self._time = now

    def _hold(self) -> None:
        self._target, self._holding = self._position.copy(), True
        self._before = (
            self._position.copy(),
            np.zeros(2),
        )  # the next command starts from rest, here

    def read(self) -> Observation | None:
        self._check_connected()
        self._pass_time()
        position = self._position.copy()
        values = {"obs": position.astype(np.float32)}
        return self.transform(Observation(values, position, self._time))

    def send(self, command: np.ndarray, due: float) -> None:
        self._check_connected()
        self._pass_time()
        self._check(command)
        self.commands.append((self.clock.now(), command.copy()))
        self._target, self._last_command_at, self._holding = command.copy(), self.clock.now(), False

    def _check(self, command: np.ndarray) -> None:
        limits, dt, slack = self.robot.safety, self.dt, 1e-6
        assert command.shape == (2,) and np.isfinite(command).all()
        assert (command >= limits.low).all() and (command <= limits.high).all(), command
        last, travel = self._before
        new_travel = command - last
        assert (np.abs(new_travel) <= limits.velocity * dt + slack).all(), (new_travel, "velocity")
        assert (np.abs(new_travel - travel) <= limits.acceleration * dt**2 + slack).all(), (
            "acceleration"
        )
        self._before = (command, new_travel)

    def _check_connected(self) -> None:
        if self.gone:
            raise DriverError("the robot is gone.")

    def stop(self) -> None:
        self.stops += 1
        self._pass_time()
        self._hold()

    def close(self) -> None:
        self.stop()
        self.closed = True


class Wanderer:
    """A policy with a random goal in each chunk, which may lie beyond the robot's limits.

    Attributes:
        reach: standard deviation of the goals.
        chunk: function applied to a chunk's actions; tests replace it. It may raise.
        calls: constraints of each predicted chunk.
    """

    shape = SimpleNamespace(
        obs_dim=2, action_dim=2, horizon=16, n_obs_steps=2, n_action_steps=8, cameras=None
    )
    name = "wanderer"
    supports_costs = True
    parameter_count = 0
    device = torch.device("cpu")

    def __init__(self, reach: float = 6.0) -> None:
        self.reach = reach
        self.chunk: Callable[[torch.Tensor], torch.Tensor] = lambda actions: actions
        self.calls: list[ChunkConstraints] = []

    def predict_chunk(self, obs, *, constraints=None, generator=None):
        constraints = constraints or ChunkConstraints()
        self.calls.append(constraints)
        goal = self.reach * torch.randn(1, 1, 2, generator=generator)
        share = torch.linspace(0, 1, 16).view(1, 16, 1)
        actions = obs["obs"][:, -1:] + share * (goal - obs["obs"][:, -1:])
        if constraints.project is not None:
            actions = constraints.project(actions)
        if (prefix := constraints.prefix) is not None:
            actions[:, : prefix.shape[1]] = prefix
        actions = self.chunk(actions)
        cost = None
        if constraints.costs:
            costs = ChunkCosts(constraints.costs, obs, lambda x: x, first=1)
            cost = costs.total(actions.unsqueeze(1))[:, 0]
        return Chunk(actions, torch.full((1,), 2), energy=torch.zeros(1), cost=cost)


def point_runner(
    *,
    mode: str = "rtc",
    delay: Callable[[], float] | float = 0.02,
    policy: Any = None,
    change: dict[str, Any] | None = None,
    max_plan_inconsistency: float | None = None,
    costs: Sequence[CostFunction] | None = None,
    **more: Any,
) -> tuple[EpisodeRunner, PointRobot, Any, SimulatedClock]:
    """Return a prepared runner, its `PointRobot`, its policy and its clock.

    Args:
        delay: inference time in seconds, or a function that returns it.
        change: robot options that replace those in `SECTION`.
        costs: costs that replace the costs of the robot.
        more: ``speed``, and further arguments of `EpisodeRunner`.
    """
    clock = SimulatedClock(start=100.0)
    robot = Robot(**{**SECTION, **(change or {})})
    policy = policy or Wanderer()
    worker = SimulatedWorker(clock, delay if callable(delay) else lambda: delay)
    dt = tick_seconds(robot, more.pop("speed", 1.0))
    driver = PointRobot(robot, clock, dt)
    execution = ExecutionOptions(mode=mode, max_plan_inconsistency=max_plan_inconsistency)
    costs = robot.chunk_costs if costs is None else costs
    planner = Planner(policy, robot.safety, dt, worker, clock, execution, costs)
    runner = EpisodeRunner(
        robot, driver, planner, clock, observation_shapes(policy), watchdog=False, **more
    )
    runner.prepare()
    return runner, driver, policy, clock
