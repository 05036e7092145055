"""Watchdogs of a run: the timeouts of a robot, and a thread that monitors the control loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock


@dataclass(frozen=True)
class WatchdogTimeouts:
    """The section ``robot.watch``: limits beyond which the robot is held or stopped, times in s.

    Args:
        observation_s: largest age of the newest observation; then the robot is held.
        inference_s: longest prediction; then the robot is held.
        command_s: longest time without a command; then the driver itself holds the robot.
        heartbeat_s: longest tick; then another thread stops the robot.
        max_consecutive_clamped_ticks: number of consecutive ticks with a clamped command after
            which the robot is held.

    Raises:
        ConfigError: a value is not positive and finite.
    """

    observation_s: float
    inference_s: float
    command_s: float
    heartbeat_s: float
    max_consecutive_clamped_ticks: int

    def __post_init__(self) -> None:
        for name in ("observation_s", "inference_s", "command_s", "heartbeat_s"):
            if not 0 < (value := getattr(self, name)) < np.inf:
                raise ConfigError(f"robot.watch.{name} must be positive and finite, got {value}.")
        if self.max_consecutive_clamped_ticks < 1:
            raise ConfigError(
                "robot.watch.max_consecutive_clamped_ticks must be at least 1, got "
                f"{self.max_consecutive_clamped_ticks}."
            )


class LoopWatchdog:
    """A thread that stops the robot when the control loop hangs or has died.

    Args:
        clock: clock of the control loop.
        timeout_s: time without a heartbeat after which the robot is stopped, s.
        stop: function that stops the robot; its argument is the reason.
    """

    def __init__(self, clock: Clock, timeout_s: float, stop: Callable[[str], None]) -> None:
        self._clock, self._timeout_s, self._stop = clock, timeout_s, stop
        self._last_beat: float | None = None
        self._closed = threading.Event()

    def beat(self) -> None:
        """Report that the loop is alive; it must beat again within the timeout."""
        self._last_beat = self._clock.now()

    def suspend(self) -> None:
        """Stop monitoring until the next beat, because the loop has ended."""
        self._last_beat = None

    def check(self) -> None:
        """Stop the robot if the last beat is too long ago."""
        last_beat = self._last_beat
        if last_beat is not None and self._clock.now() - last_beat > self._timeout_s:
            self._last_beat = None
            self._stop(f"the control loop gave no heartbeat for {self._timeout_s:g} s")

    def __enter__(self) -> LoopWatchdog:
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._timeout_s / 4):
            self.check()
