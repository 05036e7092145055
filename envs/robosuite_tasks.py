"""Layout of robosuite's tasks in robomimic's files: observations, relative and absolute actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

ACTION_SCALE = np.array([0.05] * 3 + [0.5] * 3)  # m and rad of a relative action of 1
EEF_TO_CONTROL = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # rotation of robot0_eef_quat
RATE_HZ = 20


@dataclass(frozen=True)
class Scene:
    """A task of robomimic's data sets.

    Attributes:
        env_name: its name in robosuite.
        folder: its name in the URLs of the data sets.
        objects: number of objects with a pose.
        poses: version of robosuite -> indices of "object" that hold those poses (position, m, and
            quaternion xyzw each), then those of other absolute values (bins, flags).
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
    """Return the observation (..., Do), float32, from robomimic's observation keys.

    It holds for each arm the end effector's position (3, m), quaternion (4, xyzw) and fingers (2,
    m); then the poses of the objects (see `Scene`); then the vector from each arm to each object
    (3, m).

    Args:
        obs: "robot<i>_eef_pos", "robot<i>_eef_quat", "robot<i>_gripper_qpos" and "object".
        version: of robosuite, which decides the layout of "object".
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
    """Return name -> width of each part of an observation, in order."""
    widths = {}
    for arm in range(scene.arms):
        widths |= {f"robot{arm}_eef_pos": 3, f"robot{arm}_eef_quat": 4}
        widths |= {f"robot{arm}_gripper_qpos": 2}
    offsets = 3 * scene.objects * scene.arms
    return {**widths, "poses": len(scene.poses["1.5"]), "ways": offsets}


def absolute_actions(
    obs: Mapping[str, np.ndarray], actions: np.ndarray, scale: np.ndarray = ACTION_SCALE
) -> np.ndarray:
    """Convert relative actions (..., 7 arms) to the goal poses that they set, (..., 10 arms).

    A goal is a position (3, m, world), the first two columns of a rotation matrix (6), and the
    unchanged gripper (1): Zhou et al. 2019, "On the Continuity of Rotation Representations in
    Neural Networks"; Chi et al. 2023.

    Args:
        obs: "robot<i>_eef_pos" and "robot<i>_eef_quat" at the time of each action.
        scale: (6,) m and rad of an action of 1.
    """
    arms = []
    for arm, action in enumerate(np.split(np.asarray(actions), actions.shape[-1] // 7, axis=-1)):
        goal = np.asarray(obs[f"robot{arm}_eef_pos"]) + scale[:3] * action[..., :3]
        turn = Rotation.from_rotvec(scale[3:] * action[..., 3:6]).as_matrix()
        current = Rotation.from_quat(obs[f"robot{arm}_eef_quat"]).as_matrix() @ EEF_TO_CONTROL
        arms.append(_pack_goal(goal, turn @ current, action[..., 6:]))
    return np.concatenate(arms, axis=-1)


def _pack_goal(position: np.ndarray, matrix: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    return np.concatenate([position, matrix[..., 0], matrix[..., 1], gripper], axis=-1)


def to_six_dimensional(actions: np.ndarray) -> np.ndarray:
    """Convert goals with rotation vectors (..., 7 arms) to (..., 10 arms)."""
    arms = []
    for action in np.split(actions, actions.shape[-1] // 7, axis=-1):
        matrix = Rotation.from_rotvec(action[..., 3:6]).as_matrix()
        arms.append(_pack_goal(action[..., :3], matrix, action[..., 6:]))
    return np.concatenate(arms, axis=-1)


def from_six_dimensional(actions: np.ndarray) -> np.ndarray:
    """Convert goals (..., 10 arms) to (..., 7 arms), with the rotation nearest to the two columns.

    Levinson et al. 2020, "An Analysis of SVD for Deep Rotation Estimation".
    """
    arms = []
    for action in np.split(actions, actions.shape[-1] // 10, axis=-1):
        first, second = action[..., 3:6], action[..., 6:9]
        left, _, right = np.linalg.svd(np.stack([first, second, np.cross(first, second)], axis=-1))
        left[..., -1] *= np.linalg.det(left @ right)[..., None]  # a rotation, not a reflection
        vector = Rotation.from_matrix(left @ right).as_rotvec()
        arms.append(np.concatenate([action[..., :3], vector, action[..., 9:]], axis=-1))
    return np.concatenate(arms, axis=-1)
