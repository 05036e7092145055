"""The velocity of a robot that takes velocities and should follow commanded positions."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

CORRECTION_GAIN = 1.0  # 1/s; the correction does not overshoot if measurements are 0.3 s old


class TwistTracker:
    """A converter of commanded positions to twists.

    The velocity of a command is its travel since the last command over the nominal tick. Its
    correction is `CORRECTION_GAIN` times the tracking error when the position was measured. Both
    together are at most `velocity`. There is no correction unless the measured position has changed
    within `max_age_s`: a correction towards a frozen position would move the robot for ever.

    The time that is left until a command is due is not used, because a late tick would be fast.

    Args:
        tick_s: nominal time from one command to the next, s.
        velocity: (A,) largest velocity of each entry, m/s and rad/s. The A = 3 or 6 entries are x,
            y, z and roll, pitch, yaw (about fixed axes, in this order).
        max_age_s: longest time since the measured position has changed, and longest pause between
            commands, s. After a longer pause, commands begin anew.
    """

    def __init__(self, tick_s: float, velocity: np.ndarray, max_age_s: float) -> None:
        self._tick_s, self._velocity, self._max_age_s = tick_s, velocity, max_age_s
        # Due times and goals of the commands, as far back as a measurement may be used.
        self._commands: deque[tuple[float, np.ndarray]] = deque(
            maxlen=math.ceil(max_age_s / tick_s) + 2
        )
        self._sent_at = -math.inf
        self._position: np.ndarray | None = None
        self._changed_at = -math.inf  # time of the measurement that differed from the one before

    def restart(self) -> None:
        """Forget all commands, because the robot was stopped."""
        self._commands.clear()

    def measure(self, position: np.ndarray, stamp: float) -> None:
        """Take the newest measured position (A,), m and rad, of the time `stamp` (clock seconds).

        The same measurement may be passed repeatedly.
        """
        if self._position is not None and not np.array_equal(position, self._position):
            self._changed_at = stamp
        self._position, self._stamp = position, stamp

    def twist(self, goal: np.ndarray, due: float, now: float) -> np.ndarray:
        """Return the twist (6,) that leads to a commanded position, m/s and rad/s.

        The first command after a pause or a stop has no travel, only a correction.

        Args:
            goal: (A,) commanded position, m and rad.
            due: time at which the robot should reach the goal, clock seconds.
            now: current time, clock seconds.
        """
        if now - self._sent_at > self._max_age_s:
            self.restart()
        self._sent_at = now
        last = self._commands[-1][1] if self._commands else goal
        self._commands.append((due, goal))
        rates = (goal - last) / self._tick_s + CORRECTION_GAIN * self._tracking_error(now)
        rates = np.clip(rates, -self._velocity, self._velocity)
        angular = _angular_velocity(goal[3:], rates[3:]) if len(goal) == 6 else np.zeros(3)
        return np.concatenate([rates[:3], angular])

    def _tracking_error(self, now: float) -> np.ndarray:
        """Return the commanded minus the measured position (A,) at the time of the measurement."""
        position = self._position
        is_usable = now - self._changed_at <= self._max_age_s
        if position is None or not is_usable or not np.isfinite(position).all():
            return np.zeros_like(self._velocity)
        dues, goals = zip(*self._commands, strict=True)
        reference = [np.interp(self._stamp, dues, column) for column in zip(*goals, strict=True)]
        error = np.array(reference) - position
        error[3:] = (error[3:] + np.pi) % (2 * np.pi) - np.pi  # the shorter way around
        return error


def _angular_velocity(angles: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return the angular velocity (3,), rad/s, of a rotation by roll, pitch and yaw.

    Args:
        angles: (3,) roll, pitch and yaw about the fixed axes x, y, z, rad.
        rates: (3,) their derivatives with respect to time, rad/s.

    >>> _angular_velocity(np.array([0.0, 0.0, np.pi / 2]), np.array([1.0, 0.0, 0.0])).round(6)
    array([0., 1., 0.])
    """
    (_, pitch, yaw), (roll_rate, pitch_rate, yaw_rate) = angles, rates
    horizontal = roll_rate * np.cos(pitch)
    return np.array([
        horizontal * np.cos(yaw) - pitch_rate * np.sin(yaw),
        horizontal * np.sin(yaw) + pitch_rate * np.cos(yaw),
        yaw_rate - roll_rate * np.sin(pitch),
    ])  # fmt: skip
