"""Goals of joint positions for robosuite's arms, from small motions of the hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from ebt_policy.envs.rendering import import_mujoco
from ebt_policy.envs.robosuite_tasks import ACTION_SCALE

DAMPING = 0.03  # damping of the inverse, which bounds the motion of a nearly straight elbow
POSTURE_GAIN = 0.1  # fraction of the way back to the initial posture in each control period


def joint_goals(sim_env: Any, actions: np.ndarray) -> np.ndarray:
    """Convert relative actions of the hands, (7 * arms,), to joint goals (8 * arms,).

    A goal is the positions of the seven joints (rad) and the unchanged gripper (1). The goals are
    damped least-squares solutions for the motion of the hand; motions that do not move the hand
    lead back to the initial posture. Source: Wampler 1986, "Manipulator Inverse Kinematic
    Solutions Based on Vector Formulations and Damped Least-Squares Methods".

    Args:
        sim_env: the robosuite environment, which determines the current positions.
        actions: translation, rotation vector and gripper of each arm, as in `absolute_actions`.
    """
    mujoco = import_mujoco()
    model, data = sim_env.sim.model._model, sim_env.sim.data._data
    goals = []
    for robot, action in zip(sim_env.robots, np.split(actions, len(sim_env.robots)), strict=True):
        jacobian = np.zeros((6, model.nv))
        site = robot.eef_site_id["right"]
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
        jacobian = jacobian[:, robot._ref_joint_vel_indexes]
        joints = data.qpos[robot._ref_joint_pos_indexes]
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + DAMPING**2 * np.eye(6))
        motion = inverse @ (ACTION_SCALE * action[:6])
        if action[:6].any():
            posture = POSTURE_GAIN * (robot.init_qpos - joints)
            motion += posture - inverse @ (jacobian @ posture)
        goals += [joints + motion, action[6:]]
    return np.concatenate(goals)


def joint_positions(sim_env: Any) -> np.ndarray:
    """Return the positions of the joints of all arms, (7 * arms,), rad."""
    qpos = sim_env.sim.data._data.qpos
    return np.concatenate([qpos[robot._ref_joint_pos_indexes] for robot in sim_env.robots])
