"""robomimic's HDF5 demonstrations, as published for robosuite 1.4 and 1.5, or recorded here.

    data (env_args, total)
      demo_<i> (num_samples, model_file)   actions (N, 7 arms), states, rewards, dones, obs/<key>
    mask/<name>                            names of the demonstrations of a subset

Mandlekar et al. 2021, "What Matters in Learning from Offline Human Demonstrations for Robot
Manipulation". The layout of "object" differs between versions of robosuite, and its relative parts
lag one step behind in files that were made from states; its poses do neither. So an observation
here is made of those, by `observation`, which the environment calls, too.

Shapes: N rows, arms 1 or 2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from ebt_policy.data.episodes import EpisodeError, Episodes
from ebt_policy.data.fetch import fetch_from_hub

HUB = "amandlek/robomimic"  # data set on the Hugging Face hub, where robomimic keeps its files
MOVE, TURN = 0.05, 0.5  # m and rad, what a relative action of 1 asks for
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


def absolute_actions(parts: Mapping[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
    """Relative actions (..., 7 arms) as the goals that they set: (..., 10 arms).

    A goal is a position (3, m, world), the first two columns of a rotation matrix (6), and the
    gripper as it was (1): Zhou et al. 2019, "On the Continuity of Rotation Representations in
    Neural Networks"; Chi et al. 2023.

    Args:
        parts: "robot<i>_eef_pos" and "robot<i>_eef_quat" at the time of each action.
    """
    arms = []
    for arm, one in enumerate(np.split(np.asarray(actions), actions.shape[-1] // 7, axis=-1)):
        goal = np.asarray(parts[f"robot{arm}_eef_pos"]) + MOVE * one[..., :3]
        turn = Rotation.from_rotvec(TURN * one[..., 3:6]).as_matrix()
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


def load_robomimic(
    scene: str,
    path: str | os.PathLike[str],
    *,
    mask: str | None = None,
    actions: Literal["delta", "absolute"] = "delta",
) -> Episodes:
    """Demonstrations of a robomimic file: obs (N, Do), action (N, A) and, if it has them, state.

    Args:
        scene: a key of `SCENES`.
        mask: name of a subset ("train", "20_percent"); None for all demonstrations.
        actions: "delta", as recorded, or "absolute" (see `absolute_actions`).

    Raises:
        EpisodeError: no such file, a damaged or foreign one, one of another task or controller, or
            without the subset, as one sentence.
    """
    h5py = _h5py()
    path, known = Path(path), SCENES[scene]
    if not path.is_file():
        raise EpisodeError(f"There is no robomimic file at {path}.")
    try:
        with h5py.File(path, "r") as file:
            recorded = _recorded(path, file, known)
            if actions == "delta" and not recorded.relative:
                raise EpisodeError(f"{path} holds absolute actions: set task.actions=absolute.")
            names = _names(path, file, mask)
            demos = [_demo(file[f"data/{name}"], known, recorded, actions) for name in names]
    except (OSError, KeyError, RuntimeError) as error:  # h5py's words for a damaged file
        raise EpisodeError(
            f"{path} cannot be read ({' '.join(str(error).split())}): it is truncated or no "
            "robomimic file; download or record it again."
        ) from error
    keys = set.intersection(*(set(demo) for demo in demos))
    arrays = {key: np.concatenate([demo[key] for demo in demos]) for key in sorted(keys)}
    return Episodes(arrays, np.cumsum([len(d["action"]) for d in demos]), {"rate_hz": RATE_HZ})


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise EpisodeError(
            "Reading robomimic files needs h5py: pip install 'ebt_policy[robomimic]'."
        ) from error
    return h5py


@dataclass(frozen=True)
class _Recorded:
    """How a file was recorded: version of robosuite, and whether its actions are relative."""

    version: str
    relative: bool


def _recorded(path: Path, file: Any, scene: Scene) -> _Recorded:
    """What a file says of its environment, checked to be that of `scene`."""
    if "data" not in file or "env_args" not in file["data"].attrs:
        raise EpisodeError(
            f'{path} does not say its environment ("env_args" of the group "data" is missing): '
            "convert it with robomimic's convert_robosuite.py first."
        )
    try:
        told = json.loads(file["data"].attrs["env_args"])
        name, kwargs = told["env_name"], told.get("env_kwargs", {})
        version = str(told.get("env_version") or kwargs.get("env_version") or "1.4")[:3]
        controller = kwargs["controller_configs"]
        controller = controller.get("body_parts", {}).get("right", controller)
        # robosuite's own recorder leaves out the rate where it is the usual one.
        rate, kind = kwargs.get("control_freq", RATE_HZ), controller["type"]
        relative = (
            controller.get("control_delta", True) and controller.get("input_type") != "absolute"
        )
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise EpisodeError(f'{path}: its "env_args" cannot be understood ({error}).') from error
    if name != scene.env_name:
        here = [task for task, one in SCENES.items() if one.env_name == name]
        what = f"those of {here[0]}" if here else f"those of {name!r}, which is not among the tasks"
        raise EpisodeError(
            f"{path} holds demonstrations of another environment than {scene.env_name}: {what}."
        )
    if kind != "OSC_POSE" or rate != RATE_HZ:
        raise EpisodeError(
            f"{path} was recorded with the controller {kind} at {rate} Hz; only OSC_POSE at "
            f"{RATE_HZ} Hz, as published, is understood."
        )
    if version not in scene.poses:
        raise EpisodeError(
            f"{path} comes from robosuite {version}; versions {' and '.join(scene.poses)} are "
            "understood."
        )
    return _Recorded(version, bool(relative))


def _names(path: Path, file: Any, mask: str | None) -> list[str]:
    """Demonstrations to read, in the order of their numbers."""
    if mask is None:
        names = list(file["data"])
    else:
        known = sorted(file["mask"]) if "mask" in file else []
        if mask not in known:
            raise EpisodeError(
                f"{path} has no subset {mask!r}; it has {', '.join(known) or 'none at all'} (leave "
                "task.mask out, or make one with robomimic's split_train_val.py)."
            )
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in file[f"mask/{mask}"][()]]
    if not names:
        raise EpisodeError(f"{path} holds no demonstrations.")
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def _demo(demo: Any, scene: Scene, recorded: _Recorded, actions: str) -> dict[str, np.ndarray]:
    where = f"{demo.file.filename}, {demo.name}"
    wanted = [key for key in layout(scene) if key.startswith("robot")] + ["object"]
    if "obs" not in demo:
        raise EpisodeError(
            f"{where} has no observations, only states: add them with robomimic's "
            "dataset_states_to_obs.py."
        )
    if missing := [key for key in wanted if key not in demo["obs"]]:
        raise EpisodeError(f"{where} lacks the observation {', '.join(missing)}.")
    parts = {key: demo["obs"][key][()] for key in wanted}
    if max(scene.poses[recorded.version]) >= parts["object"].shape[-1]:
        raise EpisodeError(f'{where}: "object" is {parts["object"].shape[-1]} wide, too narrow.')
    stored = "actions_abs" if actions == "absolute" and "actions_abs" in demo else "actions"
    given = demo[stored][()]
    if given.ndim != 2 or given.shape[1] != 7 * scene.arms:
        raise EpisodeError(
            f"{where}: {stored} must be (rows, {7 * scene.arms}), they are {given.shape}."
        )
    if actions == "absolute":
        relative = recorded.relative and stored == "actions"
        given = absolute_actions(parts, given) if relative else to_six_dimensional(given)
    rows = {
        "obs": observation(scene, parts, recorded.version),
        "action": given.astype(np.float32),
    }
    return rows | ({"state": demo["states"][()]} if "states" in demo else {})


def published(scene: str) -> Path:
    """The published demonstrations of one proficient human, downloaded to the cache if need be.

    Raises:
        DownloadError: they cannot be had.
    """
    folder = SCENES[scene].folder
    return fetch_from_hub(HUB, f"v1.5/{folder}/ph/low_dim_v15.hdf5", f"robomimic/{folder}.hdf5")
