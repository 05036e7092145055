"""A simulated robot that goes on in time, whether anyone looks or not."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import DriverError, Observation, Scored

ROUNDING = 1e-6  # of a physics step, so that a tick's worth of steps is not one short


class SimRobot(Scored):
    """An environment of ours as a robot: position control with a watchdog.

    Its time is the clock's: each call first simulates what has passed since the last one, in steps
    of the simulator's physics, so that it behaves the same with a real and with a simulated clock.

    Args:
        spec: the environment; it must be able to `advance` (Push-T, robosuite's absolute actions).
        clock: the loop's.
        command_s: without a command for so long, it holds.
        film: it can be rendered.
    """

    def __init__(
        self, spec: EnvSpec, clock: Clock, *, command_s: float, film: bool = False
    ) -> None:
        if not command_s > 0:
            raise ConfigError(f"robot.watch.command_s must be positive, got {command_s}.")
        self._env = spec.make("rgb_array" if film else None)
        self._scene: Any = self._env.unwrapped
        if not hasattr(self._scene, "advance"):
            raise ConfigError(f"{spec.env_id} cannot be a robot: it only knows whole steps.")
        self._clock, self._timeout = clock, command_s
        self._lock = threading.RLock()
        self._connected = False

    def connect(self) -> None:
        with self._lock:
            self._connected = True
            self.reset(0)

    def reset(self, seed: int) -> None:
        with self._lock:
            self._env.reset(seed=seed)
            self._time = self._clock.now()
            self._heard = self._time
            self._score, self._solved = 0.0, False
            self._hold()

    @property
    def score(self) -> float:
        with self._lock:
            return self._score

    @property
    def over(self) -> bool:
        with self._lock:
            return self._solved

    @property
    def holding(self) -> bool:
        """Whether it stands by itself, without commands."""
        with self._lock:
            self._pass_time()
            return self._held

    @property
    def state(self) -> np.ndarray:
        """The environment's, which tells the whole scene."""
        with self._lock:
            self._pass_time()
            return self._scene.get_state()

    def read(self) -> Observation:
        with self._lock:
            self._reachable()
            self._pass_time()
            seen = self._scene.get_obs()
            values = {**(seen if isinstance(seen, dict) else {"obs": seen})}
            values["state"] = self._scene.get_state()
            return Observation(values, self._scene.hold_action(), self._time)

    def send(self, command: np.ndarray, due: float) -> None:
        with self._lock:
            self._reachable()
            self._pass_time()
            self._target = np.array(command, dtype=np.float64)
            self._heard, self._held = self._clock.now(), False

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
        """A frame of the scene as it is."""
        with self._lock:
            self._pass_time()
            return np.ascontiguousarray(self._env.render())

    def _reachable(self) -> None:
        if not self._connected:
            raise DriverError("the simulated robot is not connected.")

    def _pass_time(self) -> None:
        now = self._clock.now()
        timeout = self._heard + self._timeout
        if not self._held and timeout < now:
            self._simulate(timeout)
            self._hold()
        self._simulate(now)

    def _simulate(self, until: float) -> None:
        step = self._scene.physics_dt
        count = int((until - self._time) / step + ROUNDING)
        if count <= 0:
            return
        self._time += count * step
        self._scene.advance(self._target, count)
        reward, solved = self._scene.compute_reward()
        self._score, self._solved = max(self._score, reward), self._solved or solved

    def _hold(self) -> None:
        self._target, self._held = self._scene.hold_action(), True
