"""Metadata of a robomimic file: its robot, its controller and the meaning of its actions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.data.episodes import EpisodeError
from ebt_policy.envs.robosuite_tasks import ACTION_SCALE, RATE_HZ, SCENES, Scene

ROBOT, GRIPPERS = "Panda", ("default", "PandaGripper")
ROBOSUITE = 1  # robomimic's number for environments of robosuite


@dataclass(frozen=True)
class RecordedController:
    """The controller with which a file was recorded.

    Attributes:
        version: version of robosuite.
        relative: whether the actions are relative.
        limit: (6,) limits to which the controller clips relative actions.
        scale: (6,) motion in m and rad for a relative action of 1.
    """

    version: str
    relative: bool
    limit: np.ndarray
    scale: np.ndarray


# Controller options for which actions have the same meaning as here, robosuite's default first.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "type": ("OSC_POSE",),
    "impedance_mode": ("fixed",),
    "goal_update_mode": ("achieved",),
    "position_limits": (None,),
    "orientation_limits": (None,),
    "input_ref_frame": ("world",),
}


def read_controller(path: Path, data: Any, scene: Scene) -> RecordedController:
    """Return the controller of a file, after checking that its environment is the one of `scene`.

    Args:
        path: the file, for messages.
        data: group "data" of the file, with the attribute "env_args".
        scene: the expected environment.

    Raises:
        EpisodeError: the metadata is missing or malformed, or the environment, robot, gripper,
            controller or version of robosuite is not supported.
    """
    if "env_args" not in data.attrs:
        raise EpisodeError(
            f'{path} does not name its environment ("env_args" of the group "data" is missing); '
            "convert it with robomimic's convert_robosuite.py first."
        )
    return parse_controller(path, data.attrs["env_args"], scene)


def parse_controller(path: Path, env_args_json: str, scene: Scene) -> RecordedController:
    """Return the controller that the JSON text ``env_args`` of robomimic describes.

    Args:
        path, scene: see `read_controller`.
        env_args_json: name of the environment, and its arguments.

    Raises:
        EpisodeError: see `read_controller`.
    """
    try:
        env_args = json.loads(env_args_json)
        name, kwargs = env_args["env_name"], env_args.get("env_kwargs", {})
        simulator = env_args.get("type", ROBOSUITE)
        version = str(env_args.get("env_version") or kwargs.get("env_version") or "1.4")[:3]
        controller = _arm_controller(kwargs["controller_configs"])
        # The recorder of robosuite omits the rate if it is the default.
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
        input_max, input_min, output_max, output_min = (
            np.broadcast_to(np.asarray(controller.get(key, usual), dtype=float), 6)
            for key, usual in ranges.items()
        )
        robots = _strings(kwargs.get("robots", [ROBOT] * scene.arms))
        grippers = _strings(kwargs.get("gripper_types", "default"))
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise EpisodeError(f'{path}: its "env_args" cannot be parsed ({error}).') from error
    if name != scene.env_name or simulator != ROBOSUITE:
        matching_tasks = [
            task for task, other_scene in SCENES.items() if other_scene.env_name == name
        ]
        actual = f"the task {matching_tasks[0]}" if matching_tasks else f"the unknown task {name!r}"
        if simulator != ROBOSUITE:
            actual = f"another simulator (number {simulator} in robomimic)"
        raise EpisodeError(f"{path} has demonstrations of {actual}, not of {scene.env_name}.")
    supported = dict(_SUPPORTED)
    if relative and scene.arms == 1:  # then the base and the world have the same orientation
        supported["input_ref_frame"] = ("world", "base")
    differing = [
        f"{key} {controller[key]}"
        for key, values in supported.items()
        if controller.get(key, values[0]) not in values
    ]
    if differing or rate != RATE_HZ:
        raise EpisodeError(
            f"{path} was recorded with the controller {', '.join(differing) or 'OSC_POSE'} at "
            f"{rate} Hz; only OSC_POSE at {RATE_HZ} Hz, as published, is supported."
        )
    if robots != [ROBOT] * scene.arms or any(g not in GRIPPERS for g in grippers):
        raise EpisodeError(
            f"{path} was recorded with the robots {', '.join(robots)} and the grippers "
            f"{', '.join(grippers)}; {scene.env_name} needs {scene.arms} {ROBOT} with the default "
            "gripper."
        )
    if version not in scene.poses:
        raise EpisodeError(
            f"{path} comes from robosuite {version}; versions {' and '.join(scene.poses)} are "
            "supported."
        )
    positive = (
        (input_max > 0).all()
        and (output_max > 0).all()
        and np.isfinite(output_max / input_max).all()
    )
    if not (
        positive
        and np.array_equal(input_min, -input_max)
        and np.array_equal(output_min, -output_max)
    ):
        raise EpisodeError(
            f"{path}: its controller maps actions from {input_min.tolist()} to "
            f"{input_max.tolist()} to {output_min.tolist()} to {output_max.tolist()}; only ranges "
            "that are symmetric around zero are supported."
        )
    return RecordedController(version, relative, input_max, output_max / input_max)


def _strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _arm_controller(configs: Any) -> dict[str, Any]:
    """Return the controller options of the arms, from the options of one robot or a list."""
    arms = []
    for config in configs if isinstance(configs, list) else [configs]:
        body_parts = config.get("body_parts")
        if body_parts is None:  # robosuite 1.4
            arms.append(config)
        else:
            body_parts = body_parts.get("arms", body_parts)
            arms += [body_parts[side] for side in ("right", "left") if side in body_parts]
    if not arms or any(arm != arms[0] for arm in arms):
        raise ValueError("there is no controller of the arms, or the arms have different ones")
    return arms[0]


def check_delta_actions(path: Path, recorded: RecordedController) -> None:
    """Raise EpisodeError if a file's actions do not have the meaning of task.actions=delta."""
    if not recorded.relative:
        raise EpisodeError(f"{path} has absolute actions; set task.actions=absolute.")
    if not (np.allclose(recorded.scale, ACTION_SCALE) and np.allclose(recorded.limit, 1)):
        raise EpisodeError(
            f"{path}: its controller maps relative actions of up to {recorded.limit.tolist()} "
            f"to {(recorded.limit * recorded.scale).tolist()} m and rad, but the environment maps "
            f"1 to {ACTION_SCALE.tolist()}; set task.actions=absolute, which converts them."
        )
