"""Conversion between ROS 2 messages and numbers: names, units, frames and encodings."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.drivers.ros_messages import CommandTopic, FrameTransform, ObservedTopic
from ebt_policy.real_robot.drivers.ros_topics import RESERVED_NAMES, parse_topics
from ebt_policy.real_robot.errors import MessageError
from ebt_policy.real_robot.recorder import Layout
from ebt_policy.real_robot.robots import load_robot

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy")

from ebt_policy.real_robot.drivers.ros_node import message_class  # noqa: E402

NUMBER = st.floats(-1e3, 1e3)
JOINTS = ObservedTopic(
    "/joints", "JointState", names=["elbow", "wrist"], scale=[1000, 2], offset=[5, 0]
)


def test_joints_are_read_by_name_in_any_order():
    message = message_class("JointState")()
    message.name, message.position = ["wrist", "finger", "elbow"], [0.5, 9.0, 0.2]
    np.testing.assert_allclose(JOINTS.read(message), [205.0, 1.0])
    message.name = ["wrist", "finger", "shoulder"]
    with pytest.raises(MessageError, match="no position of the joint elbow; it has wrist, finger"):
        JOINTS.read(message)
    message.name, message.position = ["wrist", "elbow"], [0.5]  # fewer numbers than names
    with pytest.raises(MessageError, match="the joint elbow"):
        JOINTS.read(message)
    for value in (np.nan, np.inf):
        message.name, message.position = ["wrist", "finger", "elbow"], [0.5, np.nan, value]
        with pytest.raises(MessageError, match="the position of the joint elbow is not finite"):
            JOINTS.read(message)
    message.position = [0.5, np.nan, 0.2]  # The finger is not read.
    np.testing.assert_allclose(JOINTS.read(message), [205.0, 1.0])


@given(arrays(float, 2, elements=NUMBER))
def test_written_joints_are_read_back(numbers):
    back = JOINTS.read(JOINTS.message(numbers, message_class))
    np.testing.assert_allclose(back, numbers, atol=1e-9)


@settings(deadline=None)
@given(arrays(float, 3, elements=NUMBER), st.floats(-3.1, 3.1), arrays(float, 3, elements=NUMBER))
def test_written_poses_are_read_back(xyz, yaw, scale):
    scale = np.where(np.abs(scale) < 0.1, 1.0, scale)
    part = ObservedTopic("/p", "PoseStamped", fields=["x", "y", "z", "yaw"], scale=[*scale, 1.0])
    numbers = np.array([*xyz, yaw])
    back = part.read(part.message(numbers, message_class))
    np.testing.assert_allclose(back, numbers, atol=1e-6, rtol=1e-6)


def test_poses_are_transformed_into_the_frame_of_the_policy():
    # In the policy's frame the table is at (1, 2) and turned by 90 degrees.
    frame = FrameTransform("table", xyz=(1, 2, 0), rpy=(0, 0, math.pi / 2))
    part = ObservedTopic(
        "/pose", "PoseStamped", fields=["x", "y", "yaw"], frame=frame, scale=[1e3, 1e3, 1]
    )
    message = message_class("PoseStamped")()
    message.header.frame_id = "table"
    message.pose.position.x = 0.3
    message.pose.orientation.w = 1.0
    np.testing.assert_allclose(part.read(message), [1000, 2300, math.pi / 2], atol=1e-9)
    message.header.frame_id = "map"
    with pytest.raises(MessageError, match="in the frame 'map', not 'table'"):
        part.read(message)
    message.header.frame_id, message.pose.orientation.w = "table", 0.0
    with pytest.raises(MessageError, match="no orientation"):
        part.read(message)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
def test_images_of_every_encoding_are_read_with_padded_rows(encoding):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
    encoded = image if encoding[0] in "rm" else image[..., ::-1]
    encoded = encoded[..., :1] if encoding == "mono8" else encoded
    if "a8" in encoding:
        encoded = np.concatenate([encoded, np.full((6, 5, 1), 7, np.uint8)], axis=2)
    message = message_class("Image")()
    message.height, message.width, message.encoding = 6, 5, encoding
    message.step = 5 * encoded.shape[2] + 3
    rows = np.pad(encoded.reshape(6, -1), ((0, 0), (0, 3)))
    message.data = rows.tobytes()
    want = np.repeat(image[..., :1], 3, axis=2) if encoding == "mono8" else image
    part = ObservedTopic("/camera", "Image", size=[6, 5])
    np.testing.assert_array_equal(part.read(message), want)
    small = ObservedTopic("/camera", "Image", size=[3, 2]).read(message)
    assert small.shape == (3, 2, 3) and small.dtype == np.uint8
    message.data = rows.tobytes()[:-4]
    with pytest.raises(MessageError, match="does not match width, height and step"):
        part.read(message)
    message.height = message.width = message.step = 0
    message.data = b""
    with pytest.raises(MessageError, match="/camera: the image is empty"):
        part.read(message)
    message.encoding = "16UC1"
    with pytest.raises(MessageError, match="images are '16UC1'"):
        part.read(message)


def test_compressed_images_are_decoded():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :, 0] = 250  # red
    message = message_class("CompressedImage")()
    message.data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    part = ObservedTopic("/camera", "CompressedImage", size=[8, 8])
    np.testing.assert_array_equal(part.read(message), image)
    for data in (b"no image", b""):
        message.data = data
        with pytest.raises(MessageError, match="cannot be decoded"):
            part.read(message)


@pytest.mark.parametrize("kind", ["JointTrajectory", "Float64MultiArray"])
@given(goal=arrays(float, 2, elements=NUMBER))
def test_written_commands_are_read_back(kind, goal):
    out = CommandTopic("/command", kind, names=["x", "y"], scale=1000, offset=[0, 3])
    message = out.message(goal, 0.1, message_class)
    np.testing.assert_allclose(out.read(message, np.zeros(2)), goal, atol=1e-9)


def test_trajectory_has_one_timed_point():
    out = CommandTopic("/command", "JointTrajectory", names=["x", "y"])
    message = out.message(np.array([1.0, 2.0]), 1.25, message_class)
    (point,) = message.points
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (1, 250_000_000)
    message.joint_names = ["x", "z"]
    with pytest.raises(MessageError, match="no joint y"):
        out.read(message, np.zeros(2))
    message.points = []
    with pytest.raises(MessageError, match="no point"):
        out.read(message, np.zeros(2))
    with pytest.raises(ConfigError, match="2 joint names for 3 numbers"):
        out.message(np.zeros(3), 0.1, message_class)


def test_twist_has_ros_units_and_its_frame():
    out = CommandTopic("/twist", "TwistStamped", frame_id="base", scale=[-1000, 1000, 10], offset=5)
    tracker = out.make_tracker(np.array([500.0, 500.0, 500.0]), 0.5, 1.0)
    tracker.twist(out.to_ros(np.zeros(3)), 0.5, 0.0)
    twist = tracker.twist(out.to_ros(np.array([100.0, 900.0, 5.0])), 1.0, 0.5)
    message = out.twist_message(twist, message_class)
    linear, angular = message.twist.linear, message.twist.angular
    assert (linear.x, linear.y, linear.z) == pytest.approx((-0.2, 0.5, 1.0))  # y is clipped
    assert (angular.x, angular.y, angular.z) == (0, 0, 0)
    assert message.header.frame_id == "base"
    assert CommandTopic("/c", "Float64MultiArray").make_tracker(np.ones(3), 0.5, 1.0) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "JointState"}, "needs names"),
        ({"type": "PoseStamped"}, "needs fields"),
        ({"type": "Image"}, "needs size"),
        ({"type": "LaserScan"}, "not supported"),
        ({"type": "PoseStamped", "fields": ["w"]}, "a pose has x, y"),
        ({"type": "JointState", "names": ["a"], "value": "torque"}, "value must be"),
    ],
)
def test_invalid_options_of_topics_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ObservedTopic("/topic", **options)


def test_topics_beside_the_observation_have_their_own_names():
    driver = dict(load_robot("ros2_push_t_image").driver)
    topics = parse_topics(driver)
    image = np.zeros((96, 96, 3), np.uint8)
    readings = {"agent": np.array([1.0, 2.0]), "block": np.array([3.0, 4.0, 0.5]), "image": image}
    values = topics.observation_values(readings)
    assert set(values) == {"obs", "block", "image"} and values["obs"].tolist() == [1, 2]
    observe = driver["observe"]
    for name in ("state", "energy"):
        driver["observe"] = {**observe, name: observe["block"]}
        with pytest.raises(ConfigError, match=f"observe.{name}: recordings use this name"):
            parse_topics(driver)


def test_values_have_the_names_of_joints_and_pose_fields():
    topics = parse_topics(load_robot("ros2_lift_joints").driver)
    names = topics.value_names["obs"]
    assert names[:9] == [*(f"joint{i}" for i in range(1, 8)), "gripper", "finger"]
    assert names[9:] == [f"cube.{name}" for name in ("x", "y", "z", "qw", "qx", "qy", "qz")]
    assert parse_topics(load_robot("ros2_push_t_image").driver).value_names == {
        "obs": ["x", "y"], "block": ["block.x", "block.y", "block.yaw"],
    }  # fmt: skip
    # A transform has other numbers.
    assert "obs" not in parse_topics(load_robot("ros2_push_t").driver).value_names


def test_reserved_names_are_the_columns_of_recordings():
    layout = Layout({}, ("x",), 10.0, "point", has_costs=True)
    assert set(layout.shapes()) <= set(RESERVED_NAMES)
