"""Stand-ins for a robot and a policy, on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ebt_policy.policies.base import Chunk
from ebt_policy.policies.chunk_constraints import ChunkConstraints
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.drivers.base import DriverError, Observation, Scored
from ebt_policy.real_robot.episode_runner import Session, shapes_of, tick_s
from ebt_policy.real_robot.inference_worker import SimulatedBackground
from ebt_policy.real_robot.planner import Execution, Planner
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
        "lead": 3,
        "workspace": {"x": [-9, 9]},
    },
    "watch": {
        "observation_s": 0.25,
        "inference_s": 0.6,
        "command_s": 0.25,
        "heartbeat_s": 1.0,
        "clamps": 15,
    },
    "confirm": False,
}


class PointRobot(Scored):
    """A point that follows its commands, and checks each of them by itself.

    Attributes:
        seen: what `read` gives of an observation, to be changed by a test; it may raise.
        gone: a robot that cannot be reached.
        commands: (when, command) of all that was sent.
    """

    def __init__(self, robot: Robot, clock: SimulatedClock, dt: float) -> None:
        self.robot, self.clock, self.dt = robot, clock, dt
        self.seen: Callable[[Observation], Observation | None] = lambda observation: observation
        self.gone = False
        self.commands: list[tuple[float, np.ndarray]] = []
        self.stops = 0
        self.closed = False
        self.reset(0)

    def connect(self) -> None:
        pass

    def reset(self, seed: int) -> None:
        self._at = np.random.default_rng(seed).uniform(-5, 5, 2)
        self._hold()
        self._time = self._heard = self.clock.now()

    @property
    def score(self) -> float:
        return 0.0

    @property
    def over(self) -> bool:
        return False

    @property
    def held(self) -> bool:
        """Whether it stands without commands."""
        self._pass_time()
        return self._held

    def _pass_time(self) -> None:
        now = self.clock.now()
        if not self._held and now - self._heard > self.robot.timeouts.command_s:
            self._hold()
        step = min((now - self._time) / 0.05, 1.0)
        self._at = self._at + step * (self._target - self._at)
        self._time = now

    def _hold(self) -> None:
        self._target, self._held = self._at.copy(), True
        self._before = (self._at.copy(), np.zeros(2))  # the next command starts from rest, here

    def read(self) -> Observation | None:
        self._reachable()
        self._pass_time()
        here = self._at.copy()
        return self.seen(Observation({"obs": here.astype(np.float32)}, here, self._time))

    def send(self, command: np.ndarray, due: float) -> None:
        self._reachable()
        self._pass_time()
        self._check(command)
        self.commands.append((self.clock.now(), command.copy()))
        self._target, self._heard, self._held = command.copy(), self.clock.now(), False

    def _check(self, command: np.ndarray) -> None:
        limits, dt, slack = self.robot.safety, self.dt, 1e-6
        assert command.shape == (2,) and np.isfinite(command).all()
        assert (command >= limits.low).all() and (command <= limits.high).all(), command
        last, travel = self._before
        now = command - last
        assert (np.abs(now) <= limits.velocity * dt + slack).all(), (now, "velocity")
        assert (np.abs(now - travel) <= limits.acceleration * dt**2 + slack).all(), "acceleration"
        self._before = (command, now)

    def _reachable(self) -> None:
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
    """A policy that wants to go somewhere else in every chunk, beyond the limits, too.

    Attributes:
        chunk: what it makes of a chunk's actions, to be changed by a test; it may raise.
    """

    shape = SimpleNamespace(
        obs_dim=2, action_dim=2, horizon=16, n_obs_steps=2, n_action_steps=8, cameras=None
    )
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
        return Chunk(actions, torch.full((1,), 2), energy=torch.zeros(1))


def point_session(
    *,
    mode: str = "frozen",
    delay: Callable[[], float] | float = 0.02,
    policy: Any = None,
    change: dict[str, Any] | None = None,
    surprise: float | None = None,
    **more: Any,
) -> tuple[Session, PointRobot, Any, SimulatedClock]:
    """A session with a `PointRobot`, ready to start."""
    clock = SimulatedClock(start=100.0)
    robot = Robot(**{**SECTION, **(change or {})})
    policy = policy or Wanderer()
    background = SimulatedBackground(clock, delay if callable(delay) else lambda: delay)
    dt = tick_s(robot, more.pop("speed", 1.0))
    driver = PointRobot(robot, clock, dt)
    how = Execution(mode=mode, surprise=surprise)
    planner = Planner(policy, robot.safety, dt, background, clock, how)
    session = Session(robot, driver, planner, clock, shapes_of(policy), heart=False, **more)
    session.prepare()
    return session, driver, policy, clock
