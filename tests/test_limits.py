"""Limits of a robot, parsed from its configuration."""

import importlib.util

import numpy as np
import pytest

from ebt_policy.real_robot.errors import SafetyError
from ebt_policy.real_robot.limits import Workspace, parse_limits
from ebt_policy.real_robot.safety import (
    Motion,
    limit_command,
)

DT = 0.1
SECTION = {
    "position": [[0, 10], [-1, 1]],
    "velocity": 5,
    "acceleration": [20, 3],
    "max_tracking_error": [2, None],
    "workspace": {"x": [1, 9]},
}


def test_robot_without_limits_is_not_armed():
    with pytest.raises(SafetyError) as refusal:
        parse_limits({}, ["x", "y"])
    assert str(refusal.value) == (
        "robot.limits: position, velocity, acceleration, max_tracking_error, workspace must be "
        "given; the robot is not armed without all of position, velocity, acceleration, "
        "max_tracking_error, workspace."
    )


def test_limits_are_parsed_from_a_configuration():
    limits = parse_limits(SECTION, ["x", "y"])
    assert limits.low.tolist() == [1, -1] and limits.high.tolist() == [9, 1]
    assert limits.velocity.tolist() == [5, 5] and limits.max_tracking_error.tolist() == [2, np.inf]


@pytest.mark.parametrize("name", SECTION)
def test_every_limit_is_mandatory(name):
    part = {key: value for key, value in SECTION.items() if key != name}
    with pytest.raises(SafetyError, match=f"limits: {name} must be given"):
        parse_limits(part, ["x", "y"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"velocity": [1, 2, 3]}, "velocity must be a number, or a list with one for each of 2"),
        ({"velocity": [1, None]}, "velocity must be finite"),
        ({"velocity": [1, -1]}, "velocity must be positive"),
        ({"position": [10, 0]}, "every low must be below its high"),
        ({"position": 3}, r"position must be \[low, high\]"),
        ({"workspace": {"z": [0, 1]}}, r"z, which is not an entry of robot.action \(x, y\)\."),
        ({"lead": 3}, "lead was renamed: use max_tracking_error"),
        ({"jerk": 3}, "jerk is unknown; there are position, velocity, acceleration, max_track"),
        ({"acceleration": "fast"}, "acceleration must be a number"),
        ({"acceleration": float("nan")}, "acceleration must be 2 numbers"),
    ],
)
def test_invalid_limits_are_refused(change, message):
    with pytest.raises(SafetyError, match=message):
        parse_limits(SECTION | change, ["x", "y"])


def test_workspace_includes_its_boundary():
    box = Workspace(np.zeros(3), np.ones(3), lambda q: q)
    assert box.contains(np.zeros(3)) and box.contains(np.ones(3))
    assert not box.contains(np.array([0, 0, 1.001])) and not box.contains(np.array([-0.001, 0, 0]))


@pytest.mark.robomimic
@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs MuJoCo")
def test_workspace_of_joints_uses_forward_kinematics(tmp_path):
    arm = tmp_path / "arm.xml"
    arm.write_text(
        '<mujoco><worldbody><body name="upper"><joint name="shoulder" axis="0 0 1"/>'
        '<geom size="0.01"/><body pos="1 0 0"><joint name="elbow" axis="0 0 1"/>'
        '<geom size="0.01"/><site name="tool" pos="1 0 0"/></body></body></worldbody></mujoco>'
    )
    box = [[-3, 3], [-0.5, 0.5], [-1, 1]]
    section = {
        "position": [-3.1, 3.1],
        "velocity": 10,
        "acceleration": 100,
        "max_tracking_error": None,
        "workspace": {"model": str(arm), "site": "tool", "box": box},
    }
    limits = parse_limits(section, ["shoulder", "elbow"])
    motion, measured = Motion.at_rest(np.zeros(2)), np.zeros(2)
    assert limit_command(limits, np.array([0.1, 0.1]), motion, DT, measured).command.tolist() == [
        0.1,
        0.1,
    ]
    with pytest.raises(SafetyError, match="would leave its workspace"):
        limit_command(limits, np.array([0.3, 0.0]), motion, DT, measured)  # y = 2 sin 0.3 = 0.59
    section["workspace"]["joints"] = ["shoulder", "elbow"]
    with_gripper = parse_limits(section, ["gripper", "shoulder", "elbow"])
    assert with_gripper.workspace is not None
    assert with_gripper.workspace.contains(np.array([9.0, 0.1, 0.1]))
    assert not with_gripper.workspace.contains(np.array([0.0, 0.3, 0.0]))
    section["workspace"]["joints"] = ["wrist"]
    with pytest.raises(SafetyError, match=r"workspace\.joints has wrist, which is not an entry"):
        parse_limits(section, ["shoulder", "elbow"])
    del section["workspace"]["joints"]
    with pytest.raises(SafetyError, match=r"has no joint gripper .* in workspace\.joints"):
        parse_limits(section, ["shoulder", "gripper"])
    section["workspace"]["tool"] = "x"
    with pytest.raises(SafetyError, match=r"workspace\.tool is unknown; .* model, site, joints"):
        parse_limits(section, ["shoulder", "elbow"])
    del section["workspace"]["tool"]
    section["workspace"]["box"] = box[:2]
    with pytest.raises(SafetyError, match=r"workspace\.box must be \[low, high\], or a list .* 3"):
        parse_limits(section, ["shoulder", "elbow"])
    section["workspace"] |= {"box": box, "site": "hand"}
    with pytest.raises(ValueError, match="no site or body hand"):
        parse_limits(section, ["shoulder", "elbow"])
    arm.write_text("<mujoco><arm/></mujoco>")
    with pytest.raises(SafetyError, match=r"arm\.xml is not a MuJoCo or URDF model \("):
        parse_limits(section, ["shoulder", "elbow"])
