"""Where the tool of an arm is, for limits in space of actions that are joint angles."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def tool_place(model: str, site: str, joints: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Forward kinematics: joint positions (A,) in rad or m -> the place of a site (3,), m.

    Args:
        model: a MuJoCo XML or a URDF file.
        site: of the model (in a URDF, a body).
        joints: of the model, in the order of the action.

    Raises:
        ValueError: MuJoCo is not installed, the file cannot be read, or does not have these names.
    """
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        raise ValueError(
            "a workspace of joints needs MuJoCo: pip install 'ebt_policy[robomimic]'."
        ) from error
    if not Path(model).is_file():
        raise ValueError(f"limits: workspace.model: there is no file {model}.")
    arm = mujoco.MjModel.from_xml_path(str(model))
    data = mujoco.MjData(arm)
    where = []
    for name in joints:
        index = mujoco.mj_name2id(arm, mujoco.mjtObj.mjOBJ_JOINT, name)
        if index < 0:
            raise ValueError(f"limits: {model} has no joint {name}.")
        where.append(int(arm.jnt_qposadr[index]))
    found = {
        "site_xpos": mujoco.mj_name2id(arm, mujoco.mjtObj.mjOBJ_SITE, site),
        "xpos": mujoco.mj_name2id(arm, mujoco.mjtObj.mjOBJ_BODY, site),
    }
    places, index = next(((key, i) for key, i in found.items() if i >= 0), ("", -1))
    if index < 0:
        raise ValueError(f"limits: {model} has no site or body {site}.")

    def place(command: np.ndarray) -> np.ndarray:
        data.qpos[where] = command
        mujoco.mj_kinematics(arm, data)
        return np.array(getattr(data, places)[index])

    return place
