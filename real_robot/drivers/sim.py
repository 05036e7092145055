"""A simulated robot that runs at the speed of a real or simulated clock."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ebt_policy.config import options
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import (
    ROBOT_DRIVERS,
    DriverContext,
    Observation,
    SimulatedDriver,
)
from ebt_policy.real_robot.errors import DriverError

# Fraction of a physics step. Without it, rounding could lose one of the physics steps of a tick.
ROUNDING_SLACK = 1e-6


@ROBOT_DRIVERS.register("sim")
class SimRobot(SimulatedDriver):
    """An environment of this package as a robot with position control and a watchdog.

    Each call first simulates the time since the last call, in physics steps of the simulator. The
    robot therefore behaves in the same way with a real and with a simulated clock.

    Args:
        spec: environment with a method `advance` (Push-T, robosuite with absolute actions).
        clock: clock of the control loop.
        command_s: time without a command after which the robot holds, s.
        render: whether frames can be rendered.

    Attributes:
        scene: the environment, without wrappers.

    Raises:
        ConfigError: the environment has no `advance`, or `command_s` is not positive.
    """

    def __init__(
        self, spec: EnvSpec, clock: Clock, *, command_s: float, render: bool = False
    ) -> None:
        if not command_s > 0:
            raise ConfigError(f"robot.watch.command_s must be positive, got {command_s}.")
        self._env = spec.make("rgb_array" if render else None)
        self.scene: Any = self._env.unwrapped
        if not hasattr(self.scene, "advance"):
            raise ConfigError(
                f"robot.driver.env_id={spec.env_id} cannot be a robot: it has no method `advance`, "
                "which simulates parts of a step."
            )
        self._clock, self._command_s = clock, command_s
        self._lock = threading.RLock()
        self._connected = False

    @classmethod
    def from_config(cls, section: dict[str, Any], context: DriverContext) -> SimRobot:
        """Build a driver from the options of `EnvSpec`; see `Driver.from_config`."""
        max_steps = max(1, round(context.rate_hz * context.episode_s))
        spec = options(EnvSpec, {"max_steps": max_steps, **section}, "robot.driver")
        return cls(spec, context.clock, command_s=context.command_s, render=context.render)

    def connect(self) -> None:
        with self._lock:
            self._connected = True
            self.reset(0)

    def reset(self, seed: int) -> None:
        with self._lock:
            self._env.reset(seed=seed)
            self._time = self._clock.now()
            self._last_command_at = self._time
            self._score, self._solved = 0.0, False
            self._hold()

    @property
    def score(self) -> float:
        with self._lock:
            return self._score

    @property
    def solved(self) -> bool:
        with self._lock:
            return self._solved

    @property
    def holding(self) -> bool:
        """Whether the robot holds its position because it has no command."""
        with self._lock:
            self._pass_time()
            return self._holding

    @property
    def state(self) -> np.ndarray:
        """The state of the environment, which describes the whole scene."""
        with self._lock:
            self._pass_time()
            return self.scene.get_state()

    @property
    def position(self) -> np.ndarray:
        """The position (A,) as in an observation, without rendering cameras."""
        with self._lock:
            self._pass_time()
            return self.scene.hold_action()

    def read(self) -> Observation:
        with self._lock:
            self._check_connected()
            self._pass_time()
            obs = self.scene.get_obs()
            values = {**(obs if isinstance(obs, dict) else {"obs": obs})}
            values["state"] = self.scene.get_state()
            return Observation(values, self.scene.hold_action(), self._time)

    def send(self, command: np.ndarray, due: float) -> None:
        with self._lock:
            self._check_connected()
            self._pass_time()
            self._target = np.array(command, dtype=np.float64)
            self._last_command_at, self._holding = self._clock.now(), False

    def stop(self) -> None:
        with self._lock:
            if self._connected:
                self._pass_time()
                self._hold()

    def close(self) -> None:
        with self._lock:
            self.stop()
            if self._connected:
                self._env.close()
            self._connected = False

    def render(self) -> np.ndarray:
        """Return a frame of the current scene, (H, W, 3) uint8."""
        with self._lock:
            self._pass_time()
            return np.ascontiguousarray(self._env.render())

    def _check_connected(self) -> None:
        if not self._connected:
            raise DriverError("the simulated robot is not connected.")

    def _pass_time(self) -> None:
        now = self._clock.now()
        timeout = self._last_command_at + self._command_s
        if not self._holding and timeout < now:
            self._simulate(timeout)
            self._hold()
        self._simulate(now)

    def _simulate(self, end_time: float) -> None:
        step = self.scene.physics_dt
        count = int((end_time - self._time) / step + ROUNDING_SLACK)
        if count <= 0:
            return
        self._time += count * step
        self.scene.advance(self._target, count)
        reward, solved = self.scene.compute_reward()
        self._score, self._solved = max(self._score, reward), self._solved or solved

    def _hold(self) -> None:
        self._target, self._holding = self.scene.hold_action(), True
