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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ebt_policy.data.episodes import EpisodeError, Episodes
from ebt_policy.data.hdf5 import h5py_module, member, read_rows, subgroup
from ebt_policy.envs.robosuite_tasks import (
    ACTION_SCALE,
    RATE_HZ,
    SCENES,
    Scene,
    absolute_actions,
    layout,
    observation,
    to_six_dimensional,
)
from ebt_policy.io.download import fetch_from_hub
from ebt_policy.io.paths import SHOWN, listed, reason

HUB = "amandlek/robomimic"  # data set on the Hugging Face hub, where robomimic keeps its files
ROBOT, GRIPPERS = "Panda", ("default", "PandaGripper")
ROBOSUITE = 1  # robomimic's number of this kind of environment


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
        EpisodeError: no such file, a damaged or foreign one, one of another task, robot or
            controller, or without the subset. Of several demonstrations that cannot be used the
            first few are named.
    """
    h5py = h5py_module()
    path, known = Path(path), SCENES[scene]
    if not path.is_file():
        raise EpisodeError(f"There is no robomimic file at {path}.")
    try:
        with h5py.File(path, "r") as file:
            data = _opened(path, file, "data")
            recorded = _recorded(path, data, known)
            if actions == "delta":
                _check_relative(path, recorded)
            chosen = _names(path, data, None if mask is None else _subset(path, file, mask))
            demos = _demos(path, data, chosen, known, recorded, actions)
    except EpisodeError:
        raise
    except Exception as error:  # what h5py raises at damaged files shares no base
        raise EpisodeError(
            f"{path} cannot be read ({reason(error)}): it is truncated or no robomimic file; "
            "download or record it again."
        ) from error
    keys = set.intersection(*(set(demo) for demo in demos))
    arrays = {key: np.concatenate([demo[key] for demo in demos]) for key in sorted(keys)}
    return Episodes(arrays, np.cumsum([len(d["action"]) for d in demos]), {"rate_hz": RATE_HZ})


@dataclass(frozen=True)
class _Recorded:
    """How a file was recorded.

    Attributes:
        version: of robosuite.
        relative: whether its actions are relative.
        limit: (6,) to which the controller clips a relative action.
        scale: (6,) m and rad, what a relative action of 1 asks for.
    """

    version: str
    relative: bool
    limit: np.ndarray
    scale: np.ndarray


# Options of a controller with which actions mean what they do here, robosuite's default first.
_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "type": ("OSC_POSE",),
    "impedance_mode": ("fixed",),
    "goal_update_mode": ("achieved",),
    "position_limits": (None,),
    "orientation_limits": (None,),
    "input_ref_frame": ("world",),
}


def _opened(path: Path, group: Any, name: str) -> Any:
    try:
        return subgroup(group, name)
    except EpisodeError as error:
        raise EpisodeError(f"{path} {error}: it is no robomimic file.") from error


def _recorded(path: Path, data: Any, scene: Scene) -> _Recorded:
    """What a file says of its environment, checked to be that of `scene`."""
    if "env_args" not in data.attrs:
        raise EpisodeError(
            f'{path} does not say its environment ("env_args" of the group "data" is missing): '
            "convert it with robomimic's convert_robosuite.py first."
        )
    try:
        told = json.loads(data.attrs["env_args"])
        name, kwargs = told["env_name"], told.get("env_kwargs", {})
        simulator = told.get("type", ROBOSUITE)
        version = str(told.get("env_version") or kwargs.get("env_version") or "1.4")[:3]
        controller = _controller(kwargs["controller_configs"])
        # robosuite's own recorder leaves out the rate where it is the usual one.
        rate = kwargs.get("control_freq", RATE_HZ)
        relative = bool(
            controller.get("control_delta", True) and controller.get("input_type") != "absolute"
        )
        ranges = {
            "input_max": 1,
            "input_min": -1,
            "output_max": ACTION_SCALE,
            "output_min": -ACTION_SCALE,
        }
        limit, low, reach, back = (
            np.broadcast_to(np.asarray(controller.get(key, usual), dtype=float), 6)
            for key, usual in ranges.items()
        )
        robots = _strings(kwargs.get("robots", [ROBOT] * scene.arms))
        grippers = _strings(kwargs.get("gripper_types", "default"))
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise EpisodeError(f'{path}: its "env_args" cannot be understood ({error}).') from error
    if name != scene.env_name or simulator != ROBOSUITE:
        here = [task for task, one in SCENES.items() if one.env_name == name]
        what = f"those of {here[0]}" if here else f"those of {name!r}, which is not among the tasks"
        if simulator != ROBOSUITE:
            what = f"those of a simulator that robomimic numbers {simulator}, not of robosuite"
        raise EpisodeError(
            f"{path} holds demonstrations of another environment than {scene.env_name}: {what}."
        )
    known = dict(_UNDERSTOOD)
    if relative and scene.arms == 1:  # then the base is turned as the world is
        known["input_ref_frame"] = ("world", "base")
    differing = [
        f"{key} {controller[key]}"
        for key, values in known.items()
        if controller.get(key, values[0]) not in values
    ]
    if differing or rate != RATE_HZ:
        raise EpisodeError(
            f"{path} was recorded with the controller {', '.join(differing) or 'OSC_POSE'} at "
            f"{rate} Hz; only OSC_POSE at {RATE_HZ} Hz, as published, is understood."
        )
    if robots != [ROBOT] * scene.arms or any(g not in GRIPPERS for g in grippers):
        raise EpisodeError(
            f"{path} was recorded with the robots {', '.join(robots)} and the grippers "
            f"{', '.join(grippers)}; {scene.env_name} is played by {scene.arms} {ROBOT} "
            "with its default gripper."
        )
    if version not in scene.poses:
        raise EpisodeError(
            f"{path} comes from robosuite {version}; versions {' and '.join(scene.poses)} are "
            "understood."
        )
    positive = (limit > 0).all() and (reach > 0).all() and np.isfinite(reach / limit).all()
    if not (positive and np.array_equal(low, -limit) and np.array_equal(back, -reach)):
        raise EpisodeError(
            f"{path}: its controller takes actions from {low.tolist()} to {limit.tolist()} for "
            f"{back.tolist()} to {reach.tolist()}; only ranges around zero are understood."
        )
    return _Recorded(version, relative, limit, reach / limit)


def _strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _controller(configs: Any) -> dict[str, Any]:
    """The options of the arms' controller, from those of one robot or a list of them."""
    arms = []
    for config in configs if isinstance(configs, list) else [configs]:
        parts = config.get("body_parts")
        if parts is None:  # robosuite 1.4
            arms.append(config)
        else:
            parts = parts.get("arms", parts)
            arms += [parts[side] for side in ("right", "left") if side in parts]
    if not arms or any(arm != arms[0] for arm in arms):
        raise ValueError("no controller of the arms, or not one for all of them")
    return arms[0]


def _check_relative(path: Path, recorded: _Recorded) -> None:
    if not recorded.relative:
        raise EpisodeError(f"{path} holds absolute actions: set task.actions=absolute.")
    if not (np.allclose(recorded.scale, ACTION_SCALE) and np.allclose(recorded.limit, 1)):
        raise EpisodeError(
            f"{path}: its controller turns relative actions of up to {recorded.limit.tolist()} "
            f"into {(recorded.limit * recorded.scale).tolist()} m and rad, the environment's of up "
            f"to 1 into {ACTION_SCALE.tolist()}: set task.actions=absolute, which takes it into "
            "account."
        )


def _subset(path: Path, file: Any, mask: str) -> set[str]:
    """Names of the demonstrations of a subset."""
    masks = _opened(path, file, "mask") if "mask" in file else {}
    if mask not in masks:
        raise EpisodeError(
            f"{path} has no subset {mask!r}; it has {', '.join(sorted(masks)) or 'none at all'} "
            "(leave task.mask out, or make one with robomimic's split_train_val.py)."
        )
    try:
        listing = member(masks, mask)[()]
    except EpisodeError as error:
        raise EpisodeError(f"{path} {error}.") from error
    return {n.decode() if isinstance(n, bytes) else str(n) for n in np.ravel(listing)}


def _names(path: Path, data: Any, subset: set[str] | None) -> list[str]:
    """Demonstrations to read, in the order of their numbers."""
    names = set(data) if subset is None else subset
    if absent := sorted(names - set(data)):
        raise EpisodeError(
            f"{path}: the subset task.mask names {_some(absent)}, which the file does not hold."
        )
    if not names:
        raise EpisodeError(f"{path} holds no demonstrations.")
    if strange := sorted(n for n in names if not n.rpartition("_")[2].isdecimal()):
        raise EpisodeError(
            f"{path}: its group data holds {_some(strange)}, which is no demonstration (demo_0, "
            "demo_1 and so on): remove it, or choose demonstrations with task.mask."
        )
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _demos(
    path: Path, data: Any, names: list[str], scene: Scene, recorded: _Recorded, actions: str
) -> list[dict[str, np.ndarray]]:
    """All demonstrations, or what is wrong with the first few that cannot be used."""
    demos: list[dict[str, np.ndarray]] = []
    problems = []
    for name in names:
        try:
            demo = _demo(subgroup(data, name), scene, recorded, actions)
            if demos and "state" in demo and "state" in demos[0]:
                wide, usual = (one["state"].shape[1] for one in (demo, demos[0]))
                if wide != usual:
                    raise EpisodeError(f"has states of {wide} numbers, others have {usual}")
        except EpisodeError as error:
            problems.append(f"{name} {error}.")
        else:
            demos.append(demo)
    if problems:
        raise EpisodeError(f"{path}: {listed(problems)}")
    return demos


def _demo(demo: Any, scene: Scene, recorded: _Recorded, actions: str) -> dict[str, np.ndarray]:
    """A demonstration; errors say what it has or lacks."""
    stored = "actions_abs" if actions == "absolute" and "actions_abs" in demo else "actions"
    given = read_rows(demo, stored, width=7 * scene.arms)
    rows = len(given)
    if (told := demo.attrs.get("num_samples", rows)) != rows:
        raise EpisodeError(f"has {rows} {stored}, but says that it has {told} (num_samples)")
    if "obs" not in demo:
        raise EpisodeError(
            "has no observations, only states: add them with robomimic's dataset_states_to_obs.py"
        )
    widths = {key: width for key, width in layout(scene).items() if key.startswith("robot")}
    seen = subgroup(demo, "obs")
    parts = {key: read_rows(seen, key, width=width, rows=rows) for key, width in widths.items()}
    parts["object"] = read_rows(seen, "object", rows=rows)
    if max(scene.poses[recorded.version]) >= parts["object"].shape[1]:
        raise EpisodeError(f"has object of {parts['object'].shape[1]} numbers, too few")
    for arm in range(scene.arms):
        zero = ~parts[f"robot{arm}_eef_quat"].any(axis=1)
        if zero.any():
            raise EpisodeError(
                f"has no orientation (zeros) in robot{arm}_eef_quat, first in row {zero.argmax()}"
            )
    if actions == "absolute":
        if recorded.relative and stored == "actions":
            limit = np.tile([*recorded.limit, np.inf], scene.arms)
            given = absolute_actions(parts, given.clip(-limit, limit), recorded.scale)
        else:
            given = to_six_dimensional(given)
    episode = {
        "obs": observation(scene, parts, recorded.version),
        "action": given.astype(np.float32),
    }
    return episode | ({"state": read_rows(demo, "states", rows=rows)} if "states" in demo else {})


def published(scene: str) -> Path:
    """The published demonstrations of one proficient human, downloaded to the cache if need be.

    Raises:
        DownloadError: they cannot be had.
    """
    folder = SCENES[scene].folder
    return fetch_from_hub(HUB, f"v1.5/{folder}/ph/low_dim_v15.hdf5", f"robomimic/{folder}.hdf5")
