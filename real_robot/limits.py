"""The limits of a robot, which a configuration must define before the robot may move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebt_policy.real_robot.errors import SafetyError
from ebt_policy.renamed_options import RENAMED_OPTIONS

ForwardKinematics = Callable[[np.ndarray], np.ndarray]  # command (A,) -> tool position (3,), m
LIMIT_NAMES = ("position", "velocity", "acceleration", "max_tracking_error", "workspace")
TOOL_WORKSPACE = ("model", "site", "joints", "box")


@dataclass(frozen=True)
class Workspace:
    """A box in which the tool must stay, for actions that are not positions in space.

    Args:
        low, high: (3,) corners of the box, m.
        forward_kinematics: maps a command (A,) to the position of the tool (3,), m.
    """

    low: np.ndarray
    high: np.ndarray
    forward_kinematics: ForwardKinematics

    def contains(self, command: np.ndarray) -> bool:
        """Return whether the tool is in the box after a command (A,)."""
        tool = self.forward_kinematics(command)
        return bool(np.all((tool >= self.low) & (tool <= self.high)))


@dataclass(frozen=True)
class Limits:
    """The limits of all commands, in the units of the action. None of them has a default.

    Args:
        names: names of the A entries of an action.
        low, high: (A,) range of the position.
        velocity: (A,) largest speed, units/s.
        acceleration: (A,) largest acceleration, units/s^2.
        max_tracking_error: (A,) largest distance between a command and the measured position;
            infinite for entries that are not measured.
        workspace: the box of the tool, if an action is not a position in space. Otherwise None,
            and the box is part of low and high.

    Raises:
        SafetyError: a limit has another shape, is not finite or is empty.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    max_tracking_error: np.ndarray
    workspace: Workspace | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "velocity", "acceleration", "max_tracking_error"):
            value = getattr(self, name)
            if value.shape != (len(self.names),) or np.isnan(value).any():
                raise SafetyError(
                    f"robot.limits: {name} must be {len(self.names)} numbers, one for each of "
                    f"{', '.join(self.names)}, got {value.tolist()}."
                )
            if name != "max_tracking_error" and not np.isfinite(value).all():
                raise SafetyError(f"robot.limits: {name} must be finite, got {value.tolist()}.")
        if not (self.low < self.high).all():
            raise SafetyError(
                "robot.limits: every low must be below its high, within position and workspace, "
                f"got low {self.low.tolist()} and high {self.high.tolist()}."
            )
        for name in ("velocity", "acceleration", "max_tracking_error"):
            if not (getattr(self, name) > 0).all():
                raise SafetyError(
                    f"robot.limits: {name} must be positive, got {getattr(self, name).tolist()}."
                )

    def bounds(self, device: torch.device | str = "cpu") -> Bounds:
        """Return the limits that `limit_chunks` applies, as tensors on a device."""
        return Bounds(*(torch.from_numpy(getattr(self, n)).to(device) for n in Bounds._fields))


class Bounds(NamedTuple):
    """Four limits of `Limits` as float64 tensors, for `limit_chunks`."""

    low: Tensor
    high: Tensor
    velocity: Tensor
    acceleration: Tensor


def parse_limits(section: Mapping[str, Any], names: Sequence[str]) -> Limits:
    """Parse the section ``robot.limits``: one value for all entries, or one for each name.

        position: [[low, high], ...]
        velocity: 1.0
        acceleration: 8.0
        max_tracking_error: 0.1  # null for entries that are not measured
        workspace: {x: [low, high], ...}

    ``workspace`` has the entries of the action that are positions in space (m or px). A joint-space
    robot has ``{model: arm.xml, site: tool, box: [[low, high], x3]}`` instead. Its names are joints
    of that MuJoCo model. If the action has a gripper, ``joints`` lists the names that are joints.

    Args:
        section: name of a limit -> its value.
        names: names of the A entries of an action.

    Raises:
        SafetyError: a limit is missing (all are mandatory) or has another form.
    """
    for name in section:
        if new_name := RENAMED_OPTIONS.get(("robot.limits", name)):
            raise SafetyError(f"robot.limits: {name} was renamed: use {new_name}.")
    missing = [
        name
        for name in LIMIT_NAMES
        if name not in section or (section[name] is None and name != "max_tracking_error")
    ]
    if missing:
        raise SafetyError(
            f"robot.limits: {', '.join(missing)} must be given; the robot is not armed without "
            f"all of {', '.join(LIMIT_NAMES)}."
        )
    if unknown := sorted(set(section) - set(LIMIT_NAMES)):
        raise SafetyError(
            f"robot.limits: {unknown[0]} is unknown; there are {', '.join(LIMIT_NAMES)}."
        )
    low, high = _parse_numbers(section["position"], (len(names), 2), "position").T.copy()
    box, workspace = section["workspace"], None
    if not isinstance(box, Mapping):
        raise SafetyError(
            f"robot.limits: workspace must be a section like x: [low, high], got {box}."
        )
    if "model" in box:
        workspace = _parse_tool_workspace(box, names)
    else:
        _intersect_workspace(low, high, box, names)
    rates = {
        name: _parse_numbers(section[name], (len(names),), name)
        for name in ("velocity", "acceleration", "max_tracking_error")
    }
    return Limits(tuple(names), low, high, workspace=workspace, **rates)


def _parse_tool_workspace(section: Mapping[str, Any], names: Sequence[str]) -> Workspace:
    """Parse the workspace of a robot whose actions are joint positions."""
    if absent := [name for name in ("site", "box") if name not in section]:
        raise SafetyError(f"robot.limits: workspace.{absent[0]} must be given with a model.")
    if unknown := sorted(set(section) - set(TOOL_WORKSPACE)):
        raise SafetyError(
            f"robot.limits: workspace.{unknown[0]} is unknown; with a model there are "
            f"{', '.join(TOOL_WORKSPACE)}."
        )
    from ebt_policy.real_robot.kinematics import tool_kinematics  # needs MuJoCo

    joints = list(section.get("joints") or names)
    if unknown := [name for name in joints if name not in names]:
        raise SafetyError(
            f"robot.limits: workspace.joints has {unknown[0]}, which is not an entry of "
            f"robot.action ({', '.join(names)})."
        )
    columns = [list(names).index(name) for name in joints]
    box = _parse_box(section["box"], 3, "workspace.box")
    kinematics = tool_kinematics(section["model"], section["site"], joints)
    return Workspace(box[:, 0], box[:, 1], lambda command: kinematics(command[columns]))


def _intersect_workspace(
    low: np.ndarray, high: np.ndarray, box: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Narrow the position limits (A,) in place to a box of some entries of the action."""
    if unknown := sorted(set(box) - set(names)):
        raise SafetyError(
            f"robot.limits: workspace has {unknown[0]}, which is not an entry of robot.action "
            f"({', '.join(names)})."
        )
    for name, sides in box.items():
        i = list(names).index(name)
        ((box_low, box_high),) = _parse_box(sides, 1, f"workspace.{name}")
        low[i], high[i] = max(low[i], box_low), min(high[i], box_high)


def _parse_box(value: Any, dimensions: int, name: str) -> np.ndarray:
    """Parse the sides [low, high] of a box, (dimensions, 2).

    They must be finite, because comparisons with NaN would not detect a violation.
    """
    box = _parse_numbers(value, (dimensions, 2), name)
    if not np.isfinite(box).all() or not (box[:, 0] < box[:, 1]).all():
        raise SafetyError(
            f"robot.limits: {name} must be finite, every low below its high, got {value}."
        )
    return box


def _parse_numbers(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Parse numbers of a shape, or one row that is repeated; null becomes infinity."""

    def null_to_infinity(entry: Any) -> Any:
        if isinstance(entry, Sequence) and not isinstance(entry, str):
            return [null_to_infinity(e) for e in entry]
        return np.inf if entry is None else entry

    try:
        numbers = np.array(null_to_infinity(value), dtype=np.float64)
        if numbers.shape not in (shape, shape[1:]):
            raise ValueError(numbers.shape)
    except (TypeError, ValueError):
        single = "[low, high]" if shape[1:] else "a number"
        several = f", or a list with one for each of {shape[0]}" if shape[0] > 1 else ""
        raise SafetyError(f"robot.limits: {name} must be {single}{several}, got {value}.") from None
    return np.broadcast_to(numbers, shape).copy()
