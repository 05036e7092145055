"""Conversion between ROS 2 messages and arrays: names, units, frames, encodings.

ROS uses metres and radians (REP 103), and a policy uses the units of its demonstrations. Every
topic therefore has a ``scale`` (policy units per ROS unit) and an ``offset`` (policy units):
x_policy = scale * x_ros + offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.drivers.ros_images import decode_compressed_image, decode_image
from ebt_policy.real_robot.drivers.twist_tracker import TwistTracker
from ebt_policy.real_robot.errors import MessageError

POSE_FIELDS = ("x", "y", "z", "qx", "qy", "qz", "qw", "roll", "pitch", "yaw")


def _parse_numbers(value: float | Sequence[float], count: int, name: str) -> np.ndarray:
    """Parse one number, which is repeated, or a list of `count` numbers, as an array (count,)."""
    try:
        row = np.broadcast_to(np.asarray(value, dtype=np.float64), (count,))
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be a number or {count} numbers, got {value}.") from None
    if not np.isfinite(row).all():
        raise ConfigError(f"{name} must be finite, got {value}.")
    return row


def _check_units(topic: ObservedTopic | CommandTopic, width: int) -> None:
    """Check scale and offset for `width` numbers, before the first message arrives."""
    if not _parse_numbers(topic.scale, width, f"{topic.topic}: scale").all():
        raise ConfigError(f"{topic.topic}: scale must not be 0, got {topic.scale}.")
    _parse_numbers(topic.offset, width, f"{topic.topic}: offset")


@dataclass(frozen=True)
class FrameTransform:
    """A fixed transform of poses from the frame of a message to the policy's frame.

    Args:
        id: name of the frame that the messages must have.
        xyz: (3,) position of the message's frame in the policy's frame, m.
        rpy: (3,) roll, pitch and yaw of the message's frame in the policy's frame, rad.

    Raises:
        ConfigError: `xyz` or `rpy` is not three finite numbers.
    """

    id: str
    xyz: Sequence[float] = (0.0, 0.0, 0.0)
    rpy: Sequence[float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("xyz", "rpy"):
            _parse_numbers(getattr(self, name), 3, f"the frame {self.id}: {name}")

    def apply(self, xyz: np.ndarray, rotation: Rotation) -> tuple[np.ndarray, Rotation]:
        """Transform a pose, position (3,) in m and rotation, to the policy's frame."""
        frame_rotation = Rotation.from_euler("xyz", self.rpy)
        return frame_rotation.apply(xyz) + np.asarray(self.xyz), frame_rotation * rotation


@dataclass(frozen=True)
class ObservedTopic:
    """An observed topic.

    Args:
        topic: name of the topic.
        type: type of its messages.
        names: names of the joints, in the order of the policy (JointState).
        value: value of a joint that is read (JointState).
        fields: fields of a pose, in the order of the policy, from `POSE_FIELDS` (PoseStamped).
        frame: transform of the poses; None keeps them in the frame of the message (PoseStamped).
        scale, offset: one number for all entries, or one for each.
        size: [H, W] of the observed image, px; messages are resized to it (images).

    Raises:
        ConfigError: an option is missing or invalid.
    """

    topic: str
    type: Literal["JointState", "PoseStamped", "Image", "CompressedImage"]
    names: list[str] = field(default_factory=list)
    value: Literal["position", "velocity", "effort"] = "position"
    fields: list[str] = field(default_factory=list)
    frame: FrameTransform | None = None
    scale: Any = 1.0
    offset: Any = 0.0
    size: list[int] | None = None

    def __post_init__(self) -> None:
        needs = {"JointState": "names", "PoseStamped": "fields"}.get(self.type, "size")
        if self.type not in ("JointState", "PoseStamped", "Image", "CompressedImage"):
            raise ConfigError(f"{self.topic}: messages of type {self.type} are not supported.")
        if not getattr(self, needs):
            raise ConfigError(f"{self.topic}: {self.type} needs {needs}.")
        if unknown := [name for name in self.fields if name not in POSE_FIELDS]:
            raise ConfigError(
                f"{self.topic}: a pose has {', '.join(POSE_FIELDS)}, not {unknown[0]}."
            )
        if self.value not in ("position", "velocity", "effort"):
            raise ConfigError(
                f"{self.topic}: value must be position, velocity or effort, got {self.value}."
            )
        if not self.is_image:
            _check_units(self, self.width)

    @property
    def is_image(self) -> bool:
        """Whether the messages are images of a camera."""
        return self.size is not None

    @property
    def width(self) -> int:
        """The number of entries that are read from a message."""
        return len(self.names or self.fields)

    def read(self, message: Any) -> np.ndarray:
        """Convert a message to values (n,) in policy units, or to an image (H, W, 3) uint8 in RGB.

        Raises:
            MessageError: a joint is missing or not finite, a pose is not finite or in another
                frame, or an image cannot be decoded.
        """
        if self.type == "JointState":
            raw = self._joints(message)
        elif self.type == "PoseStamped":
            raw = self._pose(message)
        else:
            image = (
                decode_image(message, self.topic)
                if self.type == "Image"
                else decode_compressed_image(message)
            )
            assert self.size is not None
            height, width = self.size
            if image.shape[:2] != (height, width):
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            return np.ascontiguousarray(image)
        scale = _parse_numbers(self.scale, len(raw), f"{self.topic}: scale")
        return scale * raw + _parse_numbers(self.offset, len(raw), f"{self.topic}: offset")

    def _joints(self, message: Any) -> np.ndarray:
        values = dict(zip(message.name, getattr(message, self.value), strict=False))
        if missing := [name for name in self.names if name not in values]:
            raise MessageError(
                f"{self.topic} has no {self.value} of the joint {missing[0]}; it has "
                f"{', '.join(values) or 'none'}"
            )
        joints = np.array([values[name] for name in self.names], dtype=np.float64)
        if not np.isfinite(joints).all():
            name = self.names[int(np.argmin(np.isfinite(joints)))]
            raise MessageError(f"{self.topic}: the {self.value} of the joint {name} is not finite")
        return joints

    def _pose(self, message: Any) -> np.ndarray:
        if self.frame is not None and message.header.frame_id != self.frame.id:
            raise MessageError(
                f"{self.topic} is in the frame {message.header.frame_id!r}, not {self.frame.id!r}"
            )
        point, q = message.pose.position, message.pose.orientation
        xyz, quaternion = np.array([point.x, point.y, point.z]), np.array([q.x, q.y, q.z, q.w])
        if not (np.isfinite(xyz).all() and np.isfinite(quaternion).all() and quaternion.any()):
            raise MessageError(f"{self.topic} has NaN, infinity or no orientation")
        rotation = Rotation.from_quat(quaternion)
        if self.frame is not None:
            xyz, rotation = self.frame.apply(xyz, rotation)
        numbers = [*xyz, *rotation.as_quat(), *rotation.as_euler("xyz")]
        return np.array([numbers[POSE_FIELDS.index(name)] for name in self.fields])

    def message(self, numbers: np.ndarray, messages: Any) -> Any:
        """Build a message without a time stamp, the inverse of `read`, for a simulated robot.

        Args:
            numbers: (n,) in policy units, or an image (H, W, 3) uint8 in RGB.
            messages: function that returns the message class with a name.
        """
        result = messages(self.type)()
        if self.is_image:
            result.height, result.width, result.encoding = *numbers.shape[:2], "rgb8"
            result.step, result.data = 3 * numbers.shape[1], numbers.tobytes()
            return result
        scale = _parse_numbers(self.scale, len(numbers), "scale")
        raw = (numbers - _parse_numbers(self.offset, len(numbers), "offset")) / scale
        if self.type == "JointState":
            result.name = list(self.names)
            setattr(result, self.value, raw.tolist())
            return result
        if self.frame is not None:
            result.header.frame_id = self.frame.id
        pose = dict(zip(self.fields, raw.tolist(), strict=True))
        angles = [pose.get(name, 0.0) for name in ("roll", "pitch", "yaw")]
        x, y, z, w = Rotation.from_euler("xyz", angles).as_quat()
        for name, value in pose.items():
            if name in "xyz":
                setattr(result.pose.position, name, value)
        q = result.pose.orientation
        q.x, q.y, q.z, q.w = (
            float(pose.get(f"q{n}", v)) for n, v in zip("xyzw", (x, y, z, w), strict=True)
        )
        return result


@dataclass(frozen=True)
class CommandTopic:
    """The topic of commands.

    Args:
        topic: name of the topic.
        type: type of its messages. JointTrajectory has one timed point, Float64MultiArray the
            position, and TwistStamped the velocity that leads to it (see `TwistTracker`).
        names: names of the joints (JointTrajectory).
        frame_id: frame of the velocity (TwistStamped).
        scale, offset: as in `ObservedTopic`.

    Raises:
        ConfigError: an option is missing or invalid.
    """

    topic: str
    type: Literal["JointTrajectory", "Float64MultiArray", "TwistStamped"]
    names: list[str] = field(default_factory=list)
    frame_id: str = ""
    scale: Any = 1.0
    offset: Any = 0.0

    def __post_init__(self) -> None:
        if self.type not in ("JointTrajectory", "Float64MultiArray", "TwistStamped"):
            raise ConfigError(f"{self.topic}: commands of type {self.type} are not supported.")
        if self.type == "JointTrajectory" and not self.names:
            raise ConfigError(f"{self.topic}: JointTrajectory needs names.")
        _check_units(self, len(self.names) or max(np.size(self.scale), np.size(self.offset)))

    def to_ros(self, position: np.ndarray) -> np.ndarray:
        """Convert a position (A,) from policy units to ROS units."""
        scale = _parse_numbers(self.scale, len(position), f"{self.topic}: scale")
        return (position - _parse_numbers(self.offset, len(position), "offset")) / scale

    def make_tracker(
        self, velocity: np.ndarray, tick_s: float, max_age_s: float
    ) -> TwistTracker | None:
        """Build the tracker of a robot that takes velocities; None for other types of messages.

        Args:
            velocity: (A,) largest velocity, in policy units per second.
            tick_s, max_age_s: see `TwistTracker`.

        Raises:
            ConfigError: an action does not have 3 or 6 entries.
        """
        if self.type != "TwistStamped":
            return None
        if len(velocity) not in (3, 6):
            raise ConfigError(
                f"{self.topic}: TwistStamped needs 3 or 6 numbers (x, y, z, and roll, pitch, yaw), "
                f"but robot.action has {len(velocity)}."
            )
        scale = _parse_numbers(self.scale, len(velocity), f"{self.topic}: scale")
        return TwistTracker(tick_s, velocity / np.abs(scale), max_age_s)

    def twist_message(self, twist: np.ndarray, messages: Any) -> Any:
        """Build a message that moves the robot with a twist.

        Args:
            twist: (6,) linear velocity in m/s and angular velocity in rad/s.
            messages: function that returns the message class with a name.
        """
        result = messages("TwistStamped")()
        result.header.frame_id = self.frame_id
        for vector, row in ((result.twist.linear, twist[:3]), (result.twist.angular, twist[3:])):
            vector.x, vector.y, vector.z = row.tolist()
        return result

    def message(self, command: np.ndarray, seconds: float, messages: Any) -> Any:
        """Build a message that moves the robot to a command (not for TwistStamped).

        Args:
            command: (A,) commanded position, in policy units.
            seconds: time until the robot should reach the command.
            messages: function that returns the message class with a name.

        Raises:
            ConfigError: the command does not fit the number of joint names.
        """
        goal, seconds = self.to_ros(command), max(seconds, 1e-3)
        result = messages(self.type)()
        if self.type == "Float64MultiArray":
            result.data = goal.tolist()
        else:
            if len(goal) != len(self.names):
                raise ConfigError(
                    f"{self.topic}: {len(self.names)} joint names for {len(goal)} numbers."
                )
            result.joint_names = list(self.names)
            point = messages("JointTrajectoryPoint")()
            point.positions = goal.tolist()
            full_seconds = math.floor(seconds)
            point.time_from_start.sec = full_seconds
            point.time_from_start.nanosec = int((seconds - full_seconds) * 1e9)
            result.points = [point]  # The header stamp stays zero: time counts from the arrival.
        return result

    def read(self, message: Any, position: np.ndarray) -> np.ndarray:
        """Convert a message to the command (A,) in policy units, for a simulated robot.

        Args:
            message: a message of `type`.
            position: (A,) measured position, which determines the expected shape.

        Raises:
            MessageError: the message has other joints, no point, or values that are not finite.
        """
        if self.type == "Float64MultiArray":
            goal = np.array(message.data, dtype=np.float64)
        elif self.type == "TwistStamped":
            raise MessageError("a simulated robot takes positions, not velocities")
        else:
            if not message.points:
                raise MessageError(f"{self.topic}: the trajectory has no point")
            values = dict(zip(message.joint_names, message.points[-1].positions, strict=False))
            if missing := [name for name in self.names if name not in values]:
                raise MessageError(f"{self.topic}: the trajectory has no joint {missing[0]}")
            goal = np.array([values[name] for name in self.names], dtype=np.float64)
        if goal.shape != position.shape or not np.isfinite(goal).all():
            raise MessageError(
                f"{self.topic}: a command must be {len(position)} finite numbers, got {goal}"
            )
        scale = _parse_numbers(self.scale, len(goal), "scale")
        return scale * goal + _parse_numbers(self.offset, len(goal), "offset")
