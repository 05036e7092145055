"""Limits of a robot, and the nearest command that keeps them: pure functions.

They take NumPy arrays where one command is sent, and PyTorch tensors where chunks of commands are
predicted, on whatever device that happens.

A command is the place (A,) where the robot is to be at the next tick; commands come every `dt`
seconds. Positions, velocities and accelerations are those of the commands. A numbers of an action,
in its own units.

Limits are kept for good: a command is allowed only if from there the robot can still brake, tick by
tick, without leaving them. So at every tick there is an allowed command, and `brake` is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ebt_policy.errors import UserError

UNSEEN = 1e-5  # of the range: policies compute in single precision
SLACK = 1e-9  # of rounding, relative to the largest number involved
Place = Callable[[np.ndarray], np.ndarray]  # command (A,) -> where the tool is (3,), m
Array = TypeVar("Array", np.ndarray, Tensor)


class SafetyError(UserError, ValueError):
    """A robot that must not move; the message says what to do."""


@dataclass(frozen=True)
class Workspace:
    """A box that the tool stays in, for actions that are not themselves places in space.

    Args:
        low, high: (3,), m.
        place: forward kinematics of a command.
    """

    low: np.ndarray
    high: np.ndarray
    place: Place

    def holds(self, command: np.ndarray) -> bool:
        at = self.place(command)
        return bool(np.all((at >= self.low) & (at <= self.high)))


@dataclass(frozen=True)
class Limits:
    """What commands to a robot keep to. None of these has a default.

    Args:
        names: of the A numbers of an action.
        low, high: (A,) position.
        velocity: (A,) units/s.
        acceleration: (A,) units/s^2.
        lead: (A,) how far a command may be from where the robot is; infinite for what nothing
            measures.
        workspace: where the action is not itself a place in space, the box of the tool; else the
            box is part of low and high.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    lead: np.ndarray
    workspace: Workspace | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "velocity", "acceleration", "lead"):
            value = getattr(self, name)
            if value.shape != (len(self.names),) or np.isnan(value).any():
                raise SafetyError(
                    f"limits: {name} must be {len(self.names)} numbers, one for each of "
                    f"{', '.join(self.names)}, got {value.tolist()}."
                )
            if name != "lead" and not np.isfinite(value).all():
                raise SafetyError(f"limits: {name} must be finite, got {value.tolist()}.")
        if not (self.low < self.high).all():
            raise SafetyError("limits: every low must be below its high.")
        for name in ("velocity", "acceleration", "lead"):
            if not (getattr(self, name) > 0).all():
                raise SafetyError(f"limits: {name} must be positive.")

    def bounds(self, device: torch.device | str = "cpu") -> Bounds:
        """Return the limits that hold along a chunk, on a device."""
        return Bounds(*(torch.from_numpy(getattr(self, n)).to(device) for n in Bounds._fields))


class Bounds(NamedTuple):
    """The limits of `Limits` as tensors of double precision, for `limit_chunks`."""

    low: Tensor
    high: Tensor
    velocity: Tensor
    acceleration: Tensor


def limits_of(section: Mapping[str, Any], names: Sequence[str]) -> Limits:
    """The section ``limits`` of a robot's configuration: one number for all, or one for each name.

        position: [[low, high], ...]   velocity:   acceleration:
        lead: null for what nothing measures
        workspace: {x: [low, high], ...} of numbers of the action that are places in space (m or
            px), or {model: arm.xml, site: tool, box: [[low, high], x3]} for joints named as in that
            MuJoCo model

    Raises:
        SafetyError: one that is missing: all are mandatory.
    """
    wanted = ("position", "velocity", "acceleration", "lead", "workspace")
    missing = [name for name in wanted if section.get(name) is None and name != "lead"]
    missing += ["lead"] * ("lead" not in section)
    if missing:
        raise SafetyError(
            f"limits: {', '.join(missing)} must be given; without all of {', '.join(wanted)} the "
            "robot is not armed."
        )
    if unknown := sorted(set(section) - set(wanted)):
        raise SafetyError(f"limits: {unknown[0]} is unknown; there are {', '.join(wanted)}.")
    low, high = _numbers(section["position"], (len(names), 2), "position").T.copy()
    space, workspace = section["workspace"], None
    if not isinstance(space, Mapping):
        raise SafetyError(f"limits: workspace must be a section, x: [low, high], ...; got {space}.")
    if "model" in space:
        if absent := [name for name in ("site", "box") if name not in space]:
            raise SafetyError(f"limits: workspace.{absent[0]} must be given with a model.")
        from ebt_policy.real_robot.kinematics import tool_place  # needs MuJoCo

        box = _box(space["box"], 3, "workspace.box")
        place = tool_place(space["model"], space["site"], names)
        workspace = Workspace(box[:, 0], box[:, 1], place)
    elif unknown := sorted(set(space) - set(names)):
        raise SafetyError(
            f"limits: workspace has {unknown[0]}, which is no number of the action "
            f"({', '.join(names)})."
        )
    else:
        for name, sides in space.items():
            i = list(names).index(name)
            ((least, most),) = _box(sides, 1, f"workspace.{name}")
            low[i], high[i] = max(low[i], least), min(high[i], most)
    given = {
        name: _numbers(section[name], (len(names),), name)
        for name in ("velocity", "acceleration", "lead")
    }
    return Limits(tuple(names), low, high, workspace=workspace, **given)


def _box(given: Any, dimensions: int, name: str) -> np.ndarray:
    """The sides [low, high] of a box, (dimensions, 2); NaN would pass every comparison unseen."""
    box = _numbers(given, (dimensions, 2), name)
    if not np.isfinite(box).all() or not (box[:, 0] < box[:, 1]).all():
        raise SafetyError(f"limits: {name} must be finite, every low below its high, got {given}.")
    return box


def _numbers(given: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Numbers of this shape, or of one row for all; null is infinite."""

    def filled(entry: Any) -> Any:
        if isinstance(entry, Sequence) and not isinstance(entry, str):
            return [filled(e) for e in entry]
        return np.inf if entry is None else entry

    try:
        numbers = np.array(filled(given), dtype=np.float64)
        if numbers.shape not in (shape, shape[1:]):
            raise ValueError(numbers.shape)
    except (TypeError, ValueError):
        one = "[low, high]" if shape[1:] else "a number"
        many = f", or a list with one for each of {shape[0]}" if shape[0] > 1 else ""
        raise SafetyError(f"limits: {name} must be {one}{many}, got {given}.") from None
    return np.broadcast_to(numbers, shape).copy()


@dataclass(frozen=True)
class Motion(Generic[Array]):
    """The last command (A,) and how far it was from the one before it (A,): one tick's travel."""

    position: Array
    travel: Array

    @staticmethod
    def rest(position: np.ndarray) -> Motion[np.ndarray]:
        position = np.asarray(position, dtype=np.float64)
        return Motion(position, np.zeros_like(position))

    def then(self, command: Array) -> Motion[Array]:
        return Motion(command, command - self.position)

    def to(self, device: torch.device | str) -> Motion[Tensor]:
        """Return the same motion as tensors of double precision."""
        both = (torch.as_tensor(x, dtype=torch.float64) for x in (self.position, self.travel))
        return Motion(*(x.to(device, non_blocking=True) for x in both))


@dataclass(frozen=True)
class Limited:
    """The nearest allowed command.

    Attributes:
        command: (A,).
        clamped: (A,) bool, which of its numbers are not those that were wanted, by more than
            rounding.
    """

    command: np.ndarray
    clamped: np.ndarray


def stopping_travel(room: Array, slowing: Array) -> Array:
    """The longest travel of one tick after which braking ends within `room`.

    Travels u, u - s, u - 2s, ... add up to at most `room` if u <= room / (n + 1) + s n / 2, where n
    is the number of ticks that braking takes: the largest with s n (n + 1) / 2 <= room.

    Args:
        room: (...) distance to the limit.
        slowing: s, by how much travel may change from one tick to the next.
    """
    xp: Any = _library(room)
    ahead = xp.clip(room, 0.0, None)
    ticks = xp.floor((xp.sqrt(1 + 8 * ahead / slowing) - 1) / 2)
    return xp.where(room >= 0, ahead / (ticks + 1) + slowing * ticks / 2, room)


def reach(
    limits: Limits | Bounds, motion: Motion[Array], dt: float, measured: np.ndarray | None = None
) -> tuple[Array, Array]:
    """The allowed commands: lowest and highest (..., A); where none is, low is above high.

    Args:
        limits: `Limits` for arrays, `Bounds` for tensors.
        motion: (..., A).
        measured: (A,) where the robot is; for arrays.
    """
    xp: Any = _library(motion.position)
    slowing: Any = limits.acceleration * dt**2
    longest = limits.velocity * dt
    at, travel = motion.position, motion.travel
    up = xp.minimum(longest, stopping_travel(limits.high - at, slowing))
    down = xp.minimum(longest, stopping_travel(at - limits.low, slowing))
    low = at + xp.maximum(-down, travel - slowing)
    high = at + xp.minimum(up, travel + slowing)
    if measured is not None:
        assert isinstance(limits, Limits)
        low = np.maximum(low, measured - limits.lead)
        high = np.minimum(high, measured + limits.lead)
    low, high = xp.maximum(low, limits.low), xp.minimum(high, limits.high)
    # Where exactly one command is left, rounding may have put its ends the wrong way round.
    slack = SLACK * (1 + xp.abs(at) + xp.abs(limits.high) + xp.abs(limits.low))
    touching = (low > high) & (low - high <= slack)
    one = xp.clip((low + high) / 2, limits.low, limits.high)
    return xp.where(touching, one, low), xp.where(touching, one, high)


def _library(x: Any) -> Any:
    """The library whose functions take `x`; those used here have the same names in both."""
    return torch if isinstance(x, Tensor) else np


def limit(
    limits: Limits, wanted: np.ndarray, motion: Motion, dt: float, measured: np.ndarray
) -> Limited:
    """The allowed command nearest to the wanted one (A,).

    Args:
        motion: of the commands so far.
        measured: (A,) where the robot is.

    Raises:
        SafetyError: a command of another shape, not finite; the robot stands outside its limits, or
            is not where it was sent; the tool would leave the workspace. Nothing may be sent then.
    """
    wanted = np.asarray(wanted, dtype=np.float64)
    if wanted.shape != limits.low.shape:
        raise SafetyError(
            f"a command must be {len(limits.names)} numbers ({', '.join(limits.names)}), got "
            f"shape {wanted.shape}."
        )
    if not np.isfinite(wanted).all():
        bad = [n for n, fine in zip(limits.names, np.isfinite(wanted), strict=True) if not fine]
        raise SafetyError(f"the command for {', '.join(bad)} is NaN or infinite.")
    low, high = reach(limits, motion, dt, measured)
    if (low > high).any():
        raise SafetyError(_why_none(limits, motion, dt, measured))
    command = np.clip(wanted, low, high)
    if limits.workspace is not None:
        stop = command + _braking(command - motion.position, limits.acceleration * dt**2)
        if not (limits.workspace.holds(command) and limits.workspace.holds(stop)):
            raise SafetyError("the tool would leave its workspace.")
    return Limited(command, np.abs(command - wanted) > UNSEEN * (limits.high - limits.low))


def brake(limits: Limits, motion: Motion, dt: float) -> np.ndarray:
    """The command (A,) that slows the robot down as fast as it may, until it stands."""
    low, high = reach(limits, motion, dt)
    return np.clip(motion.position, np.minimum(low, high), high)


def limit_chunks(
    limits: Limits | Bounds, chunks: Array, motion: Motion[Array], dt: float, first: Any = 0
) -> Array:
    """Chunks of commands (..., n, A), each command the nearest that is allowed after the last.

    Where the robot will be is not known yet; `lead` is left to `limit` at each tick.

    Args:
        limits: `Limits` for arrays, `Bounds` for tensors.
        chunks: of double precision.
        motion: (A,) before the first command that may be chosen.
        first: index of that command; those before it stay as they are. For tensors a tensor, so
            that one compiled program serves all.
    """
    xp: Any = _library(chunks)
    shape = (*chunks.shape[:-2], chunks.shape[-1])
    motion = Motion(*(xp.broadcast_to(x, shape) for x in (motion.position, motion.travel)))
    allowed = []
    for i in range(chunks.shape[-2]):
        wanted, fixed = chunks[..., i, :], first > i
        low, high = reach(limits, motion, dt)
        command = xp.where(fixed, wanted, xp.clip(wanted, xp.minimum(low, high), high))
        after = motion.then(command)
        motion = Motion(
            xp.where(fixed, motion.position, after.position),
            xp.where(fixed, motion.travel, after.travel),
        )
        allowed.append(command)
    return xp.stack(allowed, -2)


class ChunkProjection:
    """A policy's projection (see `Policy.predict_chunk`) to what `limit_chunks` allows.

    Args:
        limits, motion, dt, first: of `limit_chunks`.
        bounds: the same limits on the policy's device.
    """

    def __init__(
        self, limits: Limits, bounds: Bounds, motion: Motion[np.ndarray], dt: float, first: int
    ) -> None:
        device = bounds.low.device
        self.limits, self.bounds, self.dt, self.first = limits, bounds, dt, first
        self.motion, self.motion_there = motion, motion.to(device)
        self.first_there = torch.tensor(first).to(device, non_blocking=True)

    def __call__(self, chunks: Tensor) -> Tensor:
        """Chunks (..., n, A) -> the nearest that are allowed, of the same precision."""
        wanted = chunks.double()
        if torch.compiler.is_compiling() or not wanted.is_cpu:
            bounds, motion = self.bounds, self.motion_there
            return limit_chunks(bounds, wanted, motion, self.dt, self.first_there).to(chunks)
        # Uncompiled on the CPU, where a call of NumPy takes a third of the time of one of PyTorch.
        allowed = limit_chunks(self.limits, wanted.numpy(), self.motion, self.dt, self.first)
        return torch.from_numpy(allowed).to(chunks)


def _braking(travel: np.ndarray, slowing: np.ndarray) -> np.ndarray:
    """How much further a robot goes that brakes after a travel (A,)."""
    ticks = np.floor(np.abs(travel) / slowing)
    return np.sign(travel) * (ticks * np.abs(travel) - slowing * ticks * (ticks + 1) / 2)


def _why_none(limits: Limits, motion: Motion, dt: float, measured: np.ndarray) -> str:
    low, high = reach(limits, motion, dt)
    if (low > high).any():
        i = int(np.argmax(low > high))
        return (
            f"the robot stands outside its limits: {limits.names[i]} is at "
            f"{motion.position[i]:g}, allowed are {limits.low[i]:g} to {limits.high[i]:g}; bring "
            "it back by hand."
        )
    away = np.abs(motion.position - measured) - limits.lead
    i = int(np.argmax(away))
    return (
        f"the robot is not where it was sent: {limits.names[i]} is at {measured[i]:g}, was sent to "
        f"{motion.position[i]:g}, and may be {limits.lead[i]:g} behind; see what blocks it."
    )
