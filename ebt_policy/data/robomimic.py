"""Reading robomimic's HDF5 demonstrations, published for robosuite 1.4 and 1.5 or recorded here.

    data (env_args, total)
      demo_<i> (num_samples, model_file)   actions (N, 7 arms), states, rewards, dones, obs/<key>
    mask/<name>                            names of the demonstrations of a subset

Mandlekar et al. 2021, "What Matters in Learning from Offline Human Demonstrations for Robot
Manipulation". The layout of "object" differs between versions of robosuite, and its relative parts
lag one step behind in files that were made from states. Its poses have neither problem. So
observations are computed from poses, with the function `observation` that the environment uses.

Shapes: N rows, arms 1 or 2.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ebt_policy.data.episodes import EpisodeError, Episodes
from ebt_policy.data.hdf5 import h5py_module, member, read_rows, subgroup
from ebt_policy.data.robomimic_controller import (
    RecordedController,
    check_delta_actions,
    read_controller,
)
from ebt_policy.envs.robosuite_tasks import (
    RATE_HZ,
    SCENES,
    Scene,
    absolute_actions,
    layout,
    observation,
    to_six_dimensional,
)
from ebt_policy.io.paths import SHOWN, listed, reason


def read_robomimic(
    scene: str,
    path: str | os.PathLike[str],
    *,
    mask: str | None = None,
    actions: Literal["delta", "absolute"] = "delta",
) -> Episodes:
    """Read demonstrations of a robomimic file: obs (N, Do), action (N, A) and state, if present.

    Args:
        scene: a key of `SCENES`.
        path: the HDF5 file.
        mask: name of a subset ("train", "20_percent"); None for all demonstrations.
        actions: "delta", as recorded, or "absolute" (see `absolute_actions`).

    Raises:
        EpisodeError: the file is missing, damaged or not from robomimic; its task, robot or
            controller differs; or it has no such subset. The message lists the first few
            demonstrations that cannot be used.
    """
    h5py = h5py_module()
    path, scene_spec = Path(path), SCENES[scene]
    if not path.is_file():
        raise EpisodeError(f"there is no robomimic file at {path}.")
    try:
        with h5py.File(path, "r") as file:
            data = _open_group(path, file, "data")
            recorded = read_controller(path, data, scene_spec)
            if actions == "delta":
                check_delta_actions(path, recorded)
            chosen = _names(path, data, None if mask is None else _subset(path, file, mask))
            demos = _demos(path, data, chosen, scene_spec, recorded, actions)
    except EpisodeError:
        raise
    except Exception as error:  # errors of h5py at damaged files share no base class
        raise EpisodeError(
            f"{path} cannot be read ({reason(error)}): it is truncated or not a robomimic "
            "file; download or record it again."
        ) from error
    keys = set.intersection(*(set(demo) for demo in demos))
    arrays = {key: np.concatenate([demo[key] for demo in demos]) for key in sorted(keys)}
    return Episodes(arrays, np.cumsum([len(d["action"]) for d in demos]), {"rate_hz": RATE_HZ})


def _open_group(path: Path, group: Any, name: str) -> Any:
    try:
        return subgroup(group, name)
    except EpisodeError as error:
        raise EpisodeError(f"{path} {error}: it is not a robomimic file.") from error


def _subset(path: Path, file: Any, mask: str) -> set[str]:
    """Return the names of the demonstrations in a subset."""
    masks = _open_group(path, file, "mask") if "mask" in file else {}
    if mask not in masks:
        raise EpisodeError(
            f"{path} has no subset {mask!r}; it has {', '.join(sorted(masks)) or 'none at all'} "
            "(remove task.mask, or create a subset with robomimic's split_train_val.py)."
        )
    try:
        listing = member(masks, mask)[()]
    except EpisodeError as error:
        raise EpisodeError(f"{path} {error}.") from error
    return {n.decode() if isinstance(n, bytes) else str(n) for n in np.ravel(listing)}


def _names(path: Path, data: Any, subset: set[str] | None) -> list[str]:
    """Return the names of the demonstrations to read, ordered by their numbers."""
    names = set(data) if subset is None else subset
    if absent := sorted(names - set(data)):
        raise EpisodeError(
            f"{path}: the subset of task.mask names {_some(absent)}, which the file does not have."
        )
    if not names:
        raise EpisodeError(f"{path} contains no demonstrations.")
    if strange := sorted(n for n in names if not n.rpartition("_")[2].isdecimal()):
        raise EpisodeError(
            f"{path}: its group data contains {_some(strange)}, which is not a demonstration "
            "(demo_0, demo_1, ...); remove it, or select demonstrations with task.mask."
        )
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def _some(names: list[str]) -> str:
    suffix = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + suffix


def _demos(
    path: Path,
    data: Any,
    names: list[str],
    scene: Scene,
    recorded: RecordedController,
    actions: str,
) -> list[dict[str, np.ndarray]]:
    """Return all demonstrations; raise EpisodeError with the problems of the first few bad ones."""
    demos: list[dict[str, np.ndarray]] = []
    problems = []
    for name in names:
        try:
            demo = _demo(subgroup(data, name), scene, recorded, actions)
            if demos and "state" in demo and "state" in demos[0]:
                wide, usual = (episode["state"].shape[1] for episode in (demo, demos[0]))
                if wide != usual:
                    raise EpisodeError(f"has states of {wide} numbers, others have {usual}")
        except EpisodeError as error:
            problems.append(f"{name} {error}.")
        else:
            demos.append(demo)
    if problems:
        raise EpisodeError(f"{path}: {listed(problems)}")
    return demos


def _demo(
    demo: Any, scene: Scene, recorded: RecordedController, actions: str
) -> dict[str, np.ndarray]:
    """Return a demonstration; error messages are predicates, as in `hdf5`."""
    stored = "actions_abs" if actions == "absolute" and "actions_abs" in demo else "actions"
    action = read_rows(demo, stored, width=7 * scene.arms)
    rows = len(action)
    if (declared_rows := demo.attrs.get("num_samples", rows)) != rows:
        raise EpisodeError(f"has {rows} {stored}, but num_samples is {declared_rows}")
    if "obs" not in demo:
        raise EpisodeError(
            "has no observations, only states; add them with robomimic's dataset_states_to_obs.py"
        )
    widths = {key: width for key, width in layout(scene).items() if key.startswith("robot")}
    obs_group = subgroup(demo, "obs")
    obs = {key: read_rows(obs_group, key, width=width, rows=rows) for key, width in widths.items()}
    obs["object"] = read_rows(obs_group, "object", rows=rows)
    if max(scene.poses[recorded.version]) >= obs["object"].shape[1]:
        raise EpisodeError(f"has only {obs['object'].shape[1]} numbers in object, too few")
    for arm in range(scene.arms):
        zero = ~obs[f"robot{arm}_eef_quat"].any(axis=1)
        if zero.any():
            raise EpisodeError(
                f"has no orientation (zeros) in robot{arm}_eef_quat, first in row {zero.argmax()}"
            )
    if actions == "absolute":
        if recorded.relative and stored == "actions":
            limit = np.tile([*recorded.limit, np.inf], scene.arms)
            action = absolute_actions(obs, action.clip(-limit, limit), recorded.scale)
        else:
            action = to_six_dimensional(action)
    episode = {
        "obs": observation(scene, obs, recorded.version),
        "action": action.astype(np.float32),
    }
    return episode | ({"state": read_rows(demo, "states", rows=rows)} if "states" in demo else {})
