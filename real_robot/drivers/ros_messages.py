"""ROS 2 messages to numbers and back: names, units, frames, encodings. No ROS graph is needed.

ROS speaks metres and radians (REP 103); a policy speaks the units of its demonstrations. Every part
of an observation or a command therefore has a ``scale`` (policy units in a ROS unit) and an
``offset`` (policy units), x_policy = scale * x_ros + offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from ebt_policy.errors import ConfigError, UserError

FIELDS = ("x", "y", "z", "qx", "qy", "qz", "qw", "roll", "pitch", "yaw")
CHANNELS = {"rgb8": "rgb", "bgr8": "bgr", "rgba8": "rgb", "bgra8": "bgr", "mono8": "gray"}


class MessageError(UserError, ValueError):
    """A message that is not what the configuration says; it is rejected."""


def _numbers(given: float | Sequence[float], count: int, what: str) -> np.ndarray:
    """One number, or one for each of `count`, as (count,)."""
    try:
        row = np.broadcast_to(np.asarray(given, dtype=np.float64), (count,))
    except (TypeError, ValueError):
        raise ConfigError(f"{what} must be a number or {count} of them, got {given}.") from None
    if not np.isfinite(row).all():
        raise ConfigError(f"{what} must be finite, got {given}.")
    return row


def _check_units(part: Part | Out, width: int) -> None:
    """Refuse units that no message could be converted with, before one arrives."""
    if not _numbers(part.scale, width, f"{part.topic}: scale").all():
        raise ConfigError(f"{part.topic}: scale must not be 0, got {part.scale}.")
    _numbers(part.offset, width, f"{part.topic}: offset")


@dataclass(frozen=True)
class Frame:
    """A fixed transform of poses from the frame of a message into the policy's.

    Args:
        id: the frame that messages must be in.
        xyz: (3,) m, and
        rpy: (3,) rad, of that frame in the policy's.
    """

    id: str
    xyz: Sequence[float] = (0.0, 0.0, 0.0)
    rpy: Sequence[float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("xyz", "rpy"):
            _numbers(getattr(self, name), 3, f"the frame {self.id}: {name}")

    def enter(self, xyz: np.ndarray, turn: Rotation) -> tuple[np.ndarray, Rotation]:
        own = Rotation.from_euler("xyz", self.rpy)
        return own.apply(xyz) + np.asarray(self.xyz), own * turn


@dataclass(frozen=True)
class Part:
    """One topic that is observed.

    Args:
        topic: its name.
        type: of its messages.
        names: of joints, in the order of the policy (JointState).
        value: which of a joint's numbers.
        fields: of a pose, in the order of the policy, out of `FIELDS` (PoseStamped).
        frame: of poses.
        scale, offset: one number, or one for each.
        size: [H, W] of an image, px.
    """

    topic: str
    type: Literal["JointState", "PoseStamped", "Image", "CompressedImage"]
    names: list[str] = field(default_factory=list)
    value: Literal["position", "velocity", "effort"] = "position"
    fields: list[str] = field(default_factory=list)
    frame: Frame | None = None
    scale: Any = 1.0
    offset: Any = 0.0
    size: list[int] | None = None

    def __post_init__(self) -> None:
        needs = {"JointState": "names", "PoseStamped": "fields"}.get(self.type, "size")
        if self.type not in ("JointState", "PoseStamped", "Image", "CompressedImage"):
            raise ConfigError(f"{self.topic}: messages of type {self.type} are not understood.")
        if not getattr(self, needs):
            raise ConfigError(f"{self.topic}: {self.type} needs {needs}.")
        if unknown := [name for name in self.fields if name not in FIELDS]:
            raise ConfigError(f"{self.topic}: a pose has {', '.join(FIELDS)}, not {unknown[0]}.")
        if self.value not in ("position", "velocity", "effort"):
            raise ConfigError(f"{self.topic}: value must be position, velocity or effort.")
        if not self.image:
            _check_units(self, self.width)

    @property
    def image(self) -> bool:
        return self.size is not None

    @property
    def width(self) -> int:
        """How many numbers it gives."""
        return len(self.names or self.fields)

    def read(self, message: Any) -> np.ndarray:
        """Numbers (n,) in policy units, or an image (H, W, 3) uint8.

        Raises:
            MessageError: other names, another frame, an unknown encoding.
        """
        if self.type == "JointState":
            raw = self._joints(message)
        elif self.type == "PoseStamped":
            raw = self._pose(message)
        else:
            image = _decoded(message, self.topic) if self.type == "Image" else _unpacked(message)
            assert self.size is not None
            height, width = self.size
            if image.shape[:2] != (height, width):
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            return np.ascontiguousarray(image)
        scale = _numbers(self.scale, len(raw), f"{self.topic}: scale")
        return scale * raw + _numbers(self.offset, len(raw), f"{self.topic}: offset")

    def _joints(self, message: Any) -> np.ndarray:
        values = dict(zip(message.name, getattr(message, self.value), strict=False))
        if missing := [name for name in self.names if name not in values]:
            raise MessageError(
                f"{self.topic} has no {self.value} of the joint {missing[0]}; it has "
                f"{', '.join(values) or 'none'}"
            )
        return np.array([values[name] for name in self.names], dtype=np.float64)

    def _pose(self, message: Any) -> np.ndarray:
        if self.frame is not None and message.header.frame_id != self.frame.id:
            raise MessageError(
                f"{self.topic} is in the frame {message.header.frame_id!r}, not {self.frame.id!r}"
            )
        at, q = message.pose.position, message.pose.orientation
        xyz, quaternion = np.array([at.x, at.y, at.z]), np.array([q.x, q.y, q.z, q.w])
        if not (np.isfinite(xyz).all() and np.isfinite(quaternion).all() and quaternion.any()):
            raise MessageError(f"{self.topic} has NaN, infinity or no orientation")
        turn = Rotation.from_quat(quaternion)
        if self.frame is not None:
            xyz, turn = self.frame.enter(xyz, turn)
        numbers = [*xyz, *turn.as_quat(), *turn.as_euler("xyz")]
        return np.array([numbers[FIELDS.index(name)] for name in self.fields])

    def message(self, numbers: np.ndarray, messages: Any) -> Any:
        """The inverse, for what simulates a robot: a message without a stamp.

        Args:
            numbers: (n,) in policy units, or an image.
            messages: gives message classes by name.
        """
        made = messages(self.type)()
        if self.image:
            made.height, made.width, made.encoding = *numbers.shape[:2], "rgb8"
            made.step, made.data = 3 * numbers.shape[1], numbers.tobytes()
            return made
        scale = _numbers(self.scale, len(numbers), "scale")
        raw = (numbers - _numbers(self.offset, len(numbers), "offset")) / scale
        if self.type == "JointState":
            made.name = list(self.names)
            setattr(made, self.value, raw.tolist())
            return made
        if self.frame is not None:
            made.header.frame_id = self.frame.id
        given = dict(zip(self.fields, raw.tolist(), strict=True))
        angles = [given.get(name, 0.0) for name in ("roll", "pitch", "yaw")]
        x, y, z, w = Rotation.from_euler("xyz", angles).as_quat()
        for name, value in given.items():
            if name in "xyz":
                setattr(made.pose.position, name, value)
        q = made.pose.orientation
        q.x, q.y, q.z, q.w = (
            float(given.get(f"q{n}", v)) for n, v in zip("xyzw", (x, y, z, w), strict=True)
        )
        return made


@dataclass(frozen=True)
class Out:
    """The topic of commands.

    Args:
        topic: its name.
        type: of its messages. JointTrajectory: one timed point; Float64MultiArray: positions;
            TwistStamped: the velocity that leads there (three or six numbers).
        names: of joints (JointTrajectory).
        frame_id: of a twist.
        scale, offset: as in `Part`.
    """

    topic: str
    type: Literal["JointTrajectory", "Float64MultiArray", "TwistStamped"]
    names: list[str] = field(default_factory=list)
    frame_id: str = ""
    scale: Any = 1.0
    offset: Any = 0.0

    def __post_init__(self) -> None:
        if self.type not in ("JointTrajectory", "Float64MultiArray", "TwistStamped"):
            raise ConfigError(f"{self.topic}: commands of type {self.type} are not known.")
        if self.type == "JointTrajectory" and not self.names:
            raise ConfigError(f"{self.topic}: JointTrajectory needs names.")
        _check_units(self, len(self.names) or max(np.size(self.scale), np.size(self.offset)))

    def message(
        self, command: np.ndarray, position: np.ndarray, seconds: float, messages: Any
    ) -> Any:
        """Go from a position (A,) to a command (A,) within so many seconds; policy units.

        Raises:
            ConfigError: another number of joints than names.
        """
        scale = _numbers(self.scale, len(command), f"{self.topic}: scale")
        offset = _numbers(self.offset, len(command), f"{self.topic}: offset")
        goal, here = (command - offset) / scale, (position - offset) / scale
        seconds = max(seconds, 1e-3)
        made = messages(self.type)()
        if self.type == "Float64MultiArray":
            made.data = goal.tolist()
        elif self.type == "TwistStamped":
            if len(goal) not in (3, 6):
                raise ConfigError(f"{self.topic}: a twist has 3 or 6 numbers, not {len(goal)}.")
            made.header.frame_id = self.frame_id
            speed = [*((goal - here) / seconds), 0.0, 0.0, 0.0][:6]
            for part, start in ((made.twist.linear, 0), (made.twist.angular, 3)):
                part.x, part.y, part.z = (float(v) for v in speed[start : start + 3])
        else:
            if len(goal) != len(self.names):
                raise ConfigError(
                    f"{self.topic}: {len(self.names)} joint names for {len(goal)} numbers."
                )
            made.joint_names = list(self.names)
            point = messages("JointTrajectoryPoint")()
            point.positions = goal.tolist()
            whole = math.floor(seconds)
            point.time_from_start.sec = whole
            point.time_from_start.nanosec = int((seconds - whole) * 1e9)
            made.points = [point]  # its stamp is zero: from when it arrives
        return made

    def read(self, message: Any, position: np.ndarray) -> np.ndarray:
        """The inverse, for what simulates a robot: the command (A,) in policy units.

        Raises:
            MessageError: other joints, or no point.
        """
        if self.type == "Float64MultiArray":
            goal = np.array(message.data, dtype=np.float64)
        elif self.type == "TwistStamped":
            raise MessageError("a simulated robot is moved by positions")
        else:
            if not message.points:
                raise MessageError(f"{self.topic}: the trajectory has no point")
            values = dict(zip(message.joint_names, message.points[-1].positions, strict=False))
            if missing := [name for name in self.names if name not in values]:
                raise MessageError(f"{self.topic}: the trajectory has no joint {missing[0]}")
            goal = np.array([values[name] for name in self.names], dtype=np.float64)
        if goal.shape != position.shape or not np.isfinite(goal).all():
            raise MessageError(f"{self.topic}: {len(position)} finite numbers were expected")
        scale = _numbers(self.scale, len(goal), "scale")
        return scale * goal + _numbers(self.offset, len(goal), "offset")


def _decoded(message: Any, topic: str) -> np.ndarray:
    """(H, W, 3) RGB of an Image, whose rows may be padded."""
    if message.encoding not in CHANNELS:
        raise MessageError(
            f"{topic}: images are {message.encoding!r}; use one of {', '.join(CHANNELS)}"
        )
    depth = {"mono8": 1, "rgb8": 3, "bgr8": 3}.get(message.encoding, 4)
    data = np.frombuffer(message.data, dtype=np.uint8)
    if message.step < message.width * depth or len(data) != message.step * message.height:
        raise MessageError(f"{topic}: the image does not have the size that it says")
    rows = data.reshape(message.height, message.step)[:, : message.width * depth]
    pixels = rows.reshape(message.height, message.width, depth)[..., :3]
    order = CHANNELS[message.encoding]
    return (
        np.repeat(pixels, 3, axis=2)
        if order == "gray"
        else pixels[..., :: 1 if order == "rgb" else -1]
    )


def _unpacked(message: Any) -> np.ndarray:
    """(H, W, 3) RGB of a CompressedImage (JPEG or PNG)."""
    data = np.frombuffer(message.data, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise MessageError("a compressed image cannot be decoded")
    return image[..., ::-1]
