"""Pure functions that find the nearest command within a robot's limits.

The functions work on NumPy arrays, for a single command, and on PyTorch tensors on any device, for
predicted chunks of commands.

A command is the position (A,) that the robot should reach at the next tick, `dt` seconds later.
Limits apply to the positions, velocities and accelerations of the commands. An action has A
entries, each in its own unit.

A command is allowed only if the robot can still brake after it, tick by tick, without leaving its
limits. If the robot follows its commands, an allowed command therefore exists at every tick, and
`brake` returns one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ebt_policy.real_robot.errors import SafetyError
from ebt_policy.real_robot.limits import Bounds, Limits

CLAMP_TOLERANCE = 1e-5  # fraction of the range; policies compute in single precision
ROUNDING_SLACK = 1e-9  # relative to the magnitudes of the position and its limits
Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class Motion(Generic[Array]):
    """The motion of the commands so far.

    Attributes:
        position: (A,) the last command.
        travel: (A,) the last command minus the one before.
    """

    position: Array
    travel: Array

    @staticmethod
    def at_rest(position: np.ndarray) -> Motion[np.ndarray]:
        """Return the motion of a robot at rest at a position (A,)."""
        position = np.asarray(position, dtype=np.float64)
        return Motion(position, np.zeros_like(position))

    def advance(self, command: Array) -> Motion[Array]:
        """Return the motion after one more command (A,)."""
        return Motion(command, command - self.position)

    def to(self, device: torch.device | str) -> Motion[Tensor]:
        """Return the same motion as float64 tensors on a device."""
        tensors = (torch.as_tensor(x, dtype=torch.float64) for x in (self.position, self.travel))
        return Motion(*(x.to(device, non_blocking=True) for x in tensors))


@dataclass(frozen=True)
class LimitedCommand:
    """The allowed command nearest to a desired one.

    Attributes:
        command: (A,) the allowed command.
        clamped: (A,) bool, entries that differ from the desired command by more than rounding.
    """

    command: np.ndarray
    clamped: np.ndarray


def stopping_travel(room: Array, slowing: Array) -> Array:
    """Return the longest travel of one tick after which braking ends within `room`.

    The travels u, u - s, u - 2s, ... add up to at most `room` if u <= room / (n + 1) + s n / 2.
    Here n is the number of ticks that braking takes, the largest n with s n (n + 1) / 2 <= room.

    Args:
        room: (...) distance to the limit; a negative distance is returned unchanged.
        slowing: s, largest change of travel from one tick to the next.

    >>> float(stopping_travel(np.array(6.0), slowing=1.0))  # 3 + 2 + 1
    3.0
    """
    xp: Any = _array_library(room)
    distance = xp.clip(room, 0.0, None)
    ticks = xp.floor((xp.sqrt(1 + 8 * distance / slowing) - 1) / 2)
    return xp.where(room >= 0, distance / (ticks + 1) + slowing * ticks / 2, room)


def reachable_commands(
    limits: Limits | Bounds,
    motion: Motion[Array],
    dt: float | Tensor,
    measured_position: np.ndarray | None = None,
) -> tuple[Array, Array]:
    """Return the lowest and the highest allowed command (..., A); low > high if none is allowed.

    Args:
        limits: `Limits` for arrays, `Bounds` for tensors.
        motion: motion of the commands so far, (..., A).
        dt: time from one command to the next, s.
        measured_position: (A,) measured position of the robot, to apply `max_tracking_error`. For
            arrays only.
    """
    xp: Any = _array_library(motion.position)
    slowing: Any = limits.acceleration * dt**2
    longest = limits.velocity * dt
    last, travel = motion.position, motion.travel
    up = xp.minimum(longest, stopping_travel(limits.high - last, slowing))
    down = xp.minimum(longest, stopping_travel(last - limits.low, slowing))
    low = last + xp.maximum(-down, travel - slowing)
    high = last + xp.minimum(up, travel + slowing)
    if measured_position is not None:
        assert isinstance(limits, Limits)
        low = np.maximum(low, measured_position - limits.max_tracking_error)
        high = np.minimum(high, measured_position + limits.max_tracking_error)
    low, high = xp.maximum(low, limits.low), xp.minimum(high, limits.high)
    # If exactly one command is allowed, rounding can make low slightly larger than high.
    slack = ROUNDING_SLACK * (1 + xp.abs(last) + xp.abs(limits.high) + xp.abs(limits.low))
    touching = (low > high) & (low - high <= slack)
    middle = xp.clip((low + high) / 2, limits.low, limits.high)
    return xp.where(touching, middle, low), xp.where(touching, middle, high)


def _array_library(x: Any) -> Any:
    """Return the module, torch or NumPy, whose functions apply to `x`."""
    return torch if isinstance(x, Tensor) else np


def limit_command(
    limits: Limits, desired: np.ndarray, motion: Motion, dt: float, measured_position: np.ndarray
) -> LimitedCommand:
    """Return the allowed command nearest to the desired one.

    Args:
        limits: limits of the robot.
        desired: (A,) the desired command.
        motion: motion of the commands so far.
        dt: time from one command to the next, s.
        measured_position: (A,) measured position of the robot.

    Raises:
        SafetyError: no command may be sent. The desired command has another shape or is not finite,
            the robot is outside its limits or too far from its last command, or the tool would
            leave the workspace.
    """
    desired = np.asarray(desired, dtype=np.float64)
    if desired.shape != limits.low.shape:
        raise SafetyError(
            f"a command must be {len(limits.names)} numbers ({', '.join(limits.names)}), got "
            f"shape {desired.shape}."
        )
    if not np.isfinite(desired).all():
        bad = [n for n, fine in zip(limits.names, np.isfinite(desired), strict=True) if not fine]
        raise SafetyError(f"the command for {', '.join(bad)} is NaN or infinite.")
    low, high = reachable_commands(limits, motion, dt, measured_position)
    if (low > high).any():
        raise SafetyError(_explain_no_command(limits, motion, dt, measured_position))
    command = np.clip(desired, low, high)
    if limits.workspace is not None:
        stop = command + _braking_distance(command - motion.position, limits.acceleration * dt**2)
        if not (limits.workspace.contains(command) and limits.workspace.contains(stop)):
            raise SafetyError("the tool would leave its workspace.")
    clamped = np.abs(command - desired) > CLAMP_TOLERANCE * (limits.high - limits.low)
    return LimitedCommand(command, clamped)


def brake(limits: Limits, motion: Motion, dt: float) -> np.ndarray:
    """Return the command (A,) that slows the robot down as fast as allowed, until it is at rest."""
    low, high = reachable_commands(limits, motion, dt)
    return np.clip(motion.position, np.minimum(low, high), high)


def limit_chunks(
    limits: Limits | Bounds,
    chunks: Array,
    motion: Motion[Array],
    dt: float | Tensor,
    first: Any = 0,
) -> Array:
    """Replace each command of chunks (..., n, A) by the nearest one allowed after the one before.

    `max_tracking_error` is not applied, because the measured positions are not known yet.
    `limit_command` applies it at each tick.

    Args:
        limits: `Limits` for arrays, `Bounds` for tensors.
        chunks: chunks of commands in float64.
        motion: motion (A,) before the command ``first``.
        dt: time from one command to the next, s.
        first: index of the first command that may be changed; the earlier ones stay unchanged. It
            is a tensor if the chunks are tensors, so that one compiled program serves all values.
    """
    xp: Any = _array_library(chunks)
    shape = (*chunks.shape[:-2], chunks.shape[-1])
    motion = Motion(*(xp.broadcast_to(x, shape) for x in (motion.position, motion.travel)))
    limited = []
    for i in range(chunks.shape[-2]):
        desired, fixed = chunks[..., i, :], first > i
        low, high = reachable_commands(limits, motion, dt)
        command = xp.where(fixed, desired, xp.clip(desired, xp.minimum(low, high), high))
        after = motion.advance(command)
        motion = Motion(
            xp.where(fixed, motion.position, after.position),
            xp.where(fixed, motion.travel, after.travel),
        )
        limited.append(command)
    return xp.stack(limited, -2)


class ChunkProjection:
    """A projection of chunks onto the robot's limits, for `Policy.predict_chunk`.

    Args:
        limits, motion, dt, first: see `limit_chunks`.
        bounds: the same limits on the device of the policy.
    """

    def __init__(
        self, limits: Limits, bounds: Bounds, motion: Motion[np.ndarray], dt: float, first: int
    ) -> None:
        device = bounds.low.device
        self.limits, self.bounds, self.dt, self.first = limits, bounds, dt, first
        self.motion, self.motion_tensors = motion, motion.to(device)
        self.first_tensor = torch.tensor(first).to(device, non_blocking=True)

    def __call__(self, chunks: Tensor) -> Tensor:
        """Return the nearest allowed chunks (..., n, A), with the same dtype and device."""
        desired = chunks.double()
        if torch.compiler.is_compiling() or not desired.is_cpu:
            bounds, motion = self.bounds, self.motion_tensors
            return limit_chunks(bounds, desired, motion, self.dt, self.first_tensor).to(chunks)
        # Without compilation on the CPU, NumPy takes a third of the time of PyTorch.
        limited = limit_chunks(self.limits, desired.numpy(), self.motion, self.dt, self.first)
        return torch.from_numpy(limited).to(chunks)


def _braking_distance(travel: np.ndarray, slowing: np.ndarray) -> np.ndarray:
    """Return the distance (A,) that the robot moves while it brakes after a travel (A,)."""
    ticks = np.floor(np.abs(travel) / slowing)
    return np.sign(travel) * (ticks * np.abs(travel) - slowing * ticks * (ticks + 1) / 2)


def _explain_no_command(
    limits: Limits, motion: Motion, dt: float, measured_position: np.ndarray
) -> str:
    """Return an error message: why no command is allowed, and what to do."""
    low, high = reachable_commands(limits, motion, dt)
    if (low > high).any():
        i = int(np.argmax(low > high))
        return (
            f"the robot is outside its limits: {limits.names[i]} is at {motion.position[i]:g}, "
            f"the range is {limits.low[i]:g} to {limits.high[i]:g}; move it back by hand."
        )
    excess = np.abs(motion.position - measured_position) - limits.max_tracking_error
    i = int(np.argmax(excess))
    return (
        f"the robot does not follow its commands: {limits.names[i]} is at "
        f"{measured_position[i]:g}, the last command was {motion.position[i]:g}, and "
        f"robot.limits.max_tracking_error={limits.max_tracking_error[i]:g}; check what blocks it."
    )
