"""Layout of robosuite's tasks in robomimic's files: observations, relative and absolute actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

ACTION_SCALE = np.array([0.05] * 3 + [0.5] * 3)  # displacement of a relative action of 1, m and rad
# Orientation of the controller's frame in the frame that robot<i>_eef_quat describes.
EEF_TO_CONTROL = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
RATE_HZ = 20
OBSERVATION_VERSION = "1.5"  # version of robosuite here, which determines the layout of "object"


@dataclass(frozen=True)
class Scene:
    """A task of robomimic's data sets.

    Attributes:
        env_name: name of the task in robosuite.
        folder: name of the task in the URLs of the data sets.
        objects: number of objects with a pose.
        poses: version of robosuite -> indices into "object". The first ones are the poses of the
            objects: position (3, m) and quaternion (4, xyzw) each. The others are other absolute
            values (bins, flags).
        arms: number of robots.
    """

    env_name: str
    folder: str
    objects: int
    poses: dict[str, list[int]]
    arms: int = 1


def _indices(*ranges: tuple[int, int]) -> list[int]:
    return [i for start, stop in ranges for i in range(start, stop)]


SCENES = {
    "Lift": Scene("Lift", "lift", 1, {"1.4": _indices((0, 7)), "1.5": _indices((0, 7))}),
    "Can": Scene("PickPlaceCan", "can", 1, {"1.4": _indices((0, 7)), "1.5": _indices((7, 14))}),
    "Square": Scene("NutAssemblySquare", "square", 1,
                    {"1.4": _indices((0, 7)), "1.5": _indices((7, 14))}),
    "ToolHang": Scene("ToolHang", "tool_hang", 3, {
        "1.4": _indices((0, 7), (14, 21), (28, 35), (42, 44)),
        "1.5": _indices((7, 14), (21, 28), (35, 44)),
    }),
    "Transport": Scene("TwoArmTransport", "transport", 3, {
        "1.4": _indices((0, 27), (39, 41)),
        "1.5": _indices((0, 29)),
    }, arms=2),
}  # fmt: skip


def observation(scene: Scene, obs: Mapping[str, np.ndarray], version: str) -> np.ndarray:
    """Compute the observation (..., Do), float32, from robomimic's observation keys.

    It has three parts. The first has for each arm the position (3, m) and quaternion (4, xyzw) of
    the end effector and the finger positions (2, m). The second has the values of `Scene.poses`.
    The third has the vector from each end effector to each object (3, m).

    Args:
        scene: the task.
        obs: "robot<i>_eef_pos", "robot<i>_eef_quat", "robot<i>_gripper_qpos" and "object".
        version: version of robosuite, which determines the layout of "object".
    """
    poses = np.asarray(obs["object"])[..., scene.poses[version]]
    robots, offsets = [], []
    for arm in range(scene.arms):
        hand = np.asarray(obs[f"robot{arm}_eef_pos"])
        keys = (f"robot{arm}_eef_quat", f"robot{arm}_gripper_qpos")
        robots += [hand, *(np.asarray(obs[key]) for key in keys)]
        offsets += [poses[..., 7 * i : 7 * i + 3] - hand for i in range(scene.objects)]
    return np.concatenate([*robots, poses, *offsets], axis=-1).astype(np.float32)


def layout(scene: Scene) -> dict[str, int]:
    """Return name -> width of each part of an observation of robosuite 1.5, in order."""
    widths = {}
    for arm in range(scene.arms):
        widths |= {f"robot{arm}_eef_pos": 3, f"robot{arm}_eef_quat": 4}
        widths |= {f"robot{arm}_gripper_qpos": 2}
    offsets = 3 * scene.objects * scene.arms
    return {**widths, "poses": len(scene.poses["1.5"]), "ways": offsets}


def absolute_actions(
    obs: Mapping[str, np.ndarray], actions: np.ndarray, scale: np.ndarray = ACTION_SCALE
) -> np.ndarray:
    """Convert relative actions (..., 7 * arms) to absolute goal poses (..., 10 * arms).

    A goal is a position (3, m, world frame), the first two columns of a rotation matrix (6), and
    the unchanged gripper (1). Sources: Zhou et al. 2019, "On the Continuity of Rotation
    Representations in Neural Networks"; Chi et al. 2023.

    Args:
        obs: "robot<i>_eef_pos" and "robot<i>_eef_quat" at the time of each action.
        actions: translation, rotation vector and gripper of each arm, in [-1, 1].
        scale: (6,) displacement of a relative action of 1, m and rad.
    """
    arms = []
    for arm, action in enumerate(np.split(np.asarray(actions), actions.shape[-1] // 7, axis=-1)):
        goal = np.asarray(obs[f"robot{arm}_eef_pos"]) + scale[:3] * action[..., :3]
        turn = Rotation.from_rotvec(scale[3:] * action[..., 3:6]).as_matrix()
        current = Rotation.from_quat(obs[f"robot{arm}_eef_quat"]).as_matrix() @ EEF_TO_CONTROL
        arms.append(_pack_goal(goal, turn @ current, action[..., 6:]))
    return np.concatenate(arms, axis=-1)


def _pack_goal(position: np.ndarray, matrix: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """Return the goal (..., 10) of one arm, with two columns of its rotation matrix."""
    return np.concatenate([position, matrix[..., 0], matrix[..., 1], gripper], axis=-1)


def to_six_dimensional(actions: np.ndarray) -> np.ndarray:
    """Convert goals with rotation vectors, (..., 7 * arms), to the form (..., 10 * arms)."""
    arms = []
    for action in np.split(actions, actions.shape[-1] // 7, axis=-1):
        matrix = Rotation.from_rotvec(action[..., 3:6]).as_matrix()
        arms.append(_pack_goal(action[..., :3], matrix, action[..., 6:]))
    return np.concatenate(arms, axis=-1)


def from_six_dimensional(actions: np.ndarray) -> np.ndarray:
    """Convert goals (..., 10 * arms) to the form with rotation vectors, (..., 7 * arms).

    The rotation is the nearest to the matrix of the two columns and their cross product. Source:
    Levinson et al. 2020, "An Analysis of SVD for Deep Rotation Estimation".
    """
    arms = []
    for action in np.split(actions, actions.shape[-1] // 10, axis=-1):
        first, second = action[..., 3:6], action[..., 6:9]
        left, _, right = np.linalg.svd(np.stack([first, second, np.cross(first, second)], axis=-1))
        left[..., -1] *= np.linalg.det(left @ right)[..., None]  # avoids a reflection
        vector = Rotation.from_matrix(left @ right).as_rotvec()
        arms.append(np.concatenate([action[..., :3], vector, action[..., 9:]], axis=-1))
    return np.concatenate(arms, axis=-1)
