"""Writing recorded robosuite episodes in the format of robomimic's published files.

A file has every observation key, computed from the recorded states, the subsets "train" and
"valid", and the arguments of the environment.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ebt_policy.data.episodes import Episodes
from ebt_policy.data.robomimic_controller import ROBOSUITE, ROBOT
from ebt_policy.data.zarr_store import EpisodeError
from ebt_policy.envs.robosuite_env import RobosuiteEnv, controllers, robosuite
from ebt_policy.envs.robosuite_tasks import RATE_HZ, from_six_dimensional
from ebt_policy.io.atomic_write import atomic_path

VALIDATION = 0.1  # fraction of the demonstrations in the subset "valid"


def write_robomimic(
    path: str | PathLike[str],
    scene: str,
    episodes: Episodes,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write episodes with state (N, S) and action (N, 7 or 10 per arm) to an HDF5 file.

    The file gets its name once it is complete.

    Args:
        path: the file to write.
        scene: a key of `ebt_policy.envs.robosuite_tasks.SCENES`.
        episodes: the episodes.
        on_progress: called with the number of finished demonstrations.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        _write(file, scene, episodes, on_progress)


def _write(file: Any, scene: str, episodes: Episodes, on_progress: Callable[[int], None]) -> None:
    env = RobosuiteEnv(scene)
    width, arms = episodes.arrays["action"].shape[1], env.scene.arms
    if width not in (7 * arms, 10 * arms):
        raise EpisodeError(
            f"robomimic files have 7 or 10 numbers in an action of each arm, got {width} for "
            f"{arms}."
        )
    absolute = width == 10 * arms
    data = file.create_group("data")
    data.attrs["env_args"] = json.dumps(_env_args(env, absolute))
    data.attrs["total"] = int(episodes.ends[-1])
    for key, value in episodes.attrs.items():
        data.attrs[key] = value if isinstance(value, str) else json.dumps(value)
    env.reset(seed=0)
    model = env.sim_env.sim.model.get_xml()
    for i in range(len(episodes)):
        episode = episodes.episode(i)
        actions = episode["action"].astype(np.float64)
        demo = data.create_group(f"demo_{i}")
        demo.attrs["num_samples"], demo.attrs["model_file"] = len(actions), model
        demo["actions"] = from_six_dimensional(actions) if absolute else actions
        demo["states"] = episode["state"]
        last = np.arange(len(actions)) == len(actions) - 1  # the last step solved the task
        demo["rewards"], demo["dones"] = last.astype(np.float64), last.astype(np.int64)
        for key, rows in _observations(env, episode["state"]).items():
            demo[f"obs/{key}"] = rows
        on_progress(i + 1)
    names = np.array([f"demo_{i}".encode() for i in range(len(episodes))])
    order = np.random.default_rng(0).permutation(len(names))
    cut = round(VALIDATION * len(names))
    file["mask/valid"], file["mask/train"] = names[order[:cut]], names[order[cut:]]


def _observations(env: RobosuiteEnv, states: np.ndarray) -> dict[str, np.ndarray]:
    """Return robosuite's observations of robots and "object" in each state, key -> (length, D)."""
    rows = []
    for state in states:
        env.restore(state)
        values = env.robosuite_observations()
        rows.append(
            {k: v for k, v in values.items() if k.startswith("robot") and "proprio" not in k}
            | {"object": values["object"]}
        )
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _env_args(env: RobosuiteEnv, absolute: bool) -> dict[str, Any]:
    controller = controllers("absolute" if absolute else "delta")
    for part_config in controller["body_parts"].values():
        # robosuite 1.4 has this key. robomimic reads both keys.
        part_config["control_delta"] = not absolute
    return {
        "env_name": env.scene.env_name,
        "env_version": robosuite.__version__,
        "type": ROBOSUITE,
        "env_kwargs": {
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "ignore_done": True,
            "use_object_obs": True,
            "use_camera_obs": False,
            "control_freq": RATE_HZ,
            "controller_configs": controller,
            "robots": [ROBOT] * env.scene.arms,
            "camera_depths": False,
            "camera_heights": 84,
            "camera_widths": 84,
            "lite_physics": env.sim_env.lite_physics,
            "reward_shaping": False,
        },
    }
