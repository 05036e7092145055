"""Forward kinematics of an arm, for workspace limits of robots with joint-position actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ebt_policy.envs.rendering import import_mujoco
from ebt_policy.real_robot.errors import SafetyError


def tool_kinematics(
    model: str, site: str, joints: Sequence[str]
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from joint positions (n,), rad or m, to the position of a site (3,), m.

    Args:
        model: path of a MuJoCo XML or URDF file.
        site: name of a site of the model, or of a body (a URDF has no sites).
        joints: names of the n joints of the model, in the order of the positions.

    Raises:
        SafetyError: MuJoCo is not installed, the file does not exist or is not a model, or the
            model lacks a name.
    """
    try:
        mujoco = import_mujoco()
    except ModuleNotFoundError as error:
        raise SafetyError(
            "robot.limits: workspace.model needs MuJoCo: pip install 'ebt_policy[robomimic]'."
        ) from error
    if not Path(model).is_file():
        raise SafetyError(f"robot.limits: workspace.model={model} does not exist.")
    try:
        arm = mujoco.MjModel.from_xml_path(str(model))
    except ValueError as error:
        raise SafetyError(
            f"robot.limits: workspace.model={model} is not a MuJoCo or URDF model ({error})."
        ) from error
    data = mujoco.MjData(arm)
    joint_addresses = []
    for name in joints:
        index = mujoco.mj_name2id(arm, mujoco.mjtObj.mjOBJ_JOINT, name)
        if index < 0:
            raise SafetyError(
                f"robot.limits: workspace.model={model} has no joint {name} (from robot.action). "
                "If the action has other entries, such as a gripper, list the joints in "
                "workspace.joints."
            )
        joint_addresses.append(int(arm.jnt_qposadr[index]))
    indices = {
        "site_xpos": mujoco.mj_name2id(arm, mujoco.mjtObj.mjOBJ_SITE, site),
        "xpos": mujoco.mj_name2id(arm, mujoco.mjtObj.mjOBJ_BODY, site),
    }
    positions, index = next(((key, i) for key, i in indices.items() if i >= 0), ("", -1))
    if index < 0:
        raise SafetyError(f"robot.limits: workspace.model={model} has no site or body {site}.")

    def tool_position(command: np.ndarray) -> np.ndarray:
        data.qpos[joint_addresses] = command
        mujoco.mj_kinematics(arm, data)
        return np.array(getattr(data, positions)[index])

    return tool_position
