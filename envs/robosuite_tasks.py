"""robosuite's tasks as robomimic's files have them: observations, relative and absolute actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

SCALE = np.array([0.05] * 3 + [0.5] * 3)  # m and rad, what a relative action of 1 asks for


FLANGE = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # robot0_eef_quat -> the controlled frame


RATE_HZ = 20


@dataclass(frozen=True)
class Scene:
    """A task of the data sets.

    Attributes:
        env_name: robosuite's name of it.
        folder: its name in the data sets' addresses.
        objects: how many objects have a pose.
        poses: version of robosuite -> entries of "object" that hold those poses (position, m, and
            quaternion xyzw each), and after them what else is absolute (bins, flags).
        arms: number of robots.
    """

    env_name: str
    folder: str
    objects: int
    poses: dict[str, list[int]]
    arms: int = 1


def _span(*ranges: tuple[int, int]) -> list[int]:
    return [i for start, stop in ranges for i in range(start, stop)]


SCENES = {
    "Lift": Scene("Lift", "lift", 1, {"1.4": _span((0, 7)), "1.5": _span((0, 7))}),
    "Can": Scene("PickPlaceCan", "can", 1, {"1.4": _span((0, 7)), "1.5": _span((7, 14))}),
    "Square": Scene("NutAssemblySquare", "square", 1,
                    {"1.4": _span((0, 7)), "1.5": _span((7, 14))}),
    "ToolHang": Scene("ToolHang", "tool_hang", 3, {
        "1.4": _span((0, 7), (14, 21), (28, 35), (42, 44)),
        "1.5": _span((7, 14), (21, 28), (35, 44)),
    }),
    "Transport": Scene("TwoArmTransport", "transport", 3, {
        "1.4": _span((0, 27), (39, 41)),
        "1.5": _span((0, 29)),
    }, arms=2),
}  # fmt: skip


def observation(scene: Scene, parts: Mapping[str, np.ndarray], version: str) -> np.ndarray:
    """The observation (..., Do), float32, of robomimic's observation keys.

    For each arm the end effector's position (3, m), quaternion (4, xyzw) and fingers (2, m); the
    poses of the objects (see `Scene`); and the way from each arm to each object (3, m).

    Args:
        parts: "robot<i>_eef_pos", "robot<i>_eef_quat", "robot<i>_gripper_qpos" and "object".
        version: of robosuite, which decides how "object" is laid out.
    """
    poses = np.asarray(parts["object"])[..., scene.poses[version]]
    robots, ways = [], []
    for arm in range(scene.arms):
        hand = np.asarray(parts[f"robot{arm}_eef_pos"])
        keys = (f"robot{arm}_eef_quat", f"robot{arm}_gripper_qpos")
        robots += [hand, *(np.asarray(parts[key]) for key in keys)]
        ways += [poses[..., 7 * i : 7 * i + 3] - hand for i in range(scene.objects)]
    return np.concatenate([*robots, poses, *ways], axis=-1).astype(np.float32)


def layout(scene: Scene) -> dict[str, int]:
    """Name -> width of each part of an observation, in order."""
    parts = {}
    for arm in range(scene.arms):
        parts |= {f"robot{arm}_eef_pos": 3, f"robot{arm}_eef_quat": 4}
        parts |= {f"robot{arm}_gripper_qpos": 2}
    ways = 3 * scene.objects * scene.arms
    return {**parts, "poses": len(scene.poses["1.5"]), "ways": ways}


def absolute_actions(
    parts: Mapping[str, np.ndarray], actions: np.ndarray, scale: np.ndarray = SCALE
) -> np.ndarray:
    """Relative actions (..., 7 arms) as the goals that they set: (..., 10 arms).

    A goal is a position (3, m, world), the first two columns of a rotation matrix (6), and the
    gripper as it was (1): Zhou et al. 2019, "On the Continuity of Rotation Representations in
    Neural Networks"; Chi et al. 2023.

    Args:
        parts: "robot<i>_eef_pos" and "robot<i>_eef_quat" at the time of each action.
        scale: (6,) m and rad, what an action of 1 asks for.
    """
    arms = []
    for arm, one in enumerate(np.split(np.asarray(actions), actions.shape[-1] // 7, axis=-1)):
        goal = np.asarray(parts[f"robot{arm}_eef_pos"]) + scale[:3] * one[..., :3]
        turn = Rotation.from_rotvec(scale[3:] * one[..., 3:6]).as_matrix()
        here = Rotation.from_quat(parts[f"robot{arm}_eef_quat"]).as_matrix() @ FLANGE
        arms.append(_goal(goal, turn @ here, one[..., 6:]))
    return np.concatenate(arms, axis=-1)


def _goal(position: np.ndarray, matrix: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    return np.concatenate([position, matrix[..., 0], matrix[..., 1], gripper], axis=-1)


def to_six_dimensional(actions: np.ndarray) -> np.ndarray:
    """Goals with rotation vectors (..., 7 arms), as robomimic stores them, as (..., 10 arms)."""
    arms = []
    for one in np.split(actions, actions.shape[-1] // 7, axis=-1):
        matrix = Rotation.from_rotvec(one[..., 3:6]).as_matrix()
        arms.append(_goal(one[..., :3], matrix, one[..., 6:]))
    return np.concatenate(arms, axis=-1)


def from_six_dimensional(actions: np.ndarray) -> np.ndarray:
    """Inverse: (..., 10 arms) -> (..., 7 arms), with the rotation nearest to any two columns.

    Levinson et al. 2020, "An Analysis of SVD for Deep Rotation Estimation".
    """
    arms = []
    for one in np.split(actions, actions.shape[-1] // 10, axis=-1):
        first, second = one[..., 3:6], one[..., 6:9]
        left, _, right = np.linalg.svd(np.stack([first, second, np.cross(first, second)], axis=-1))
        left[..., -1] *= np.linalg.det(left @ right)[..., None]  # a rotation, no mirror image
        vector = Rotation.from_matrix(left @ right).as_rotvec()
        arms.append(np.concatenate([one[..., :3], vector, one[..., 9:]], axis=-1))
    return np.concatenate(arms, axis=-1)
