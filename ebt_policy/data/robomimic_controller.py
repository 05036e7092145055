"""How a robomimic file was recorded: its robot, its controller, and what its actions mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.data.episodes import EpisodeError
from ebt_policy.envs.robosuite_tasks import ACTION_SCALE, RATE_HZ, SCENES, Scene

ROBOT, GRIPPERS = "Panda", ("default", "PandaGripper")
ROBOSUITE = 1  # robomimic's number of this kind of environment


@dataclass(frozen=True)
class RecordedController:
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
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "type": ("OSC_POSE",),
    "impedance_mode": ("fixed",),
    "goal_update_mode": ("achieved",),
    "position_limits": (None,),
    "orientation_limits": (None,),
    "input_ref_frame": ("world",),
}


def read_controller(path: Path, data: Any, scene: Scene) -> RecordedController:
    """What a file says of its environment, checked to be that of `scene`."""
    if "env_args" not in data.attrs:
        raise EpisodeError(
            f'{path} does not say its environment ("env_args" of the group "data" is missing): '
            "convert it with robomimic's convert_robosuite.py first."
        )
    try:
        env_args = json.loads(data.attrs["env_args"])
        name, kwargs = env_args["env_name"], env_args.get("env_kwargs", {})
        simulator = env_args.get("type", ROBOSUITE)
        version = str(env_args.get("env_version") or kwargs.get("env_version") or "1.4")[:3]
        controller = _arm_controller(kwargs["controller_configs"])
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
        input_max, input_min, output_max, output_min = (
            np.broadcast_to(np.asarray(controller.get(key, usual), dtype=float), 6)
            for key, usual in ranges.items()
        )
        robots = _strings(kwargs.get("robots", [ROBOT] * scene.arms))
        grippers = _strings(kwargs.get("gripper_types", "default"))
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise EpisodeError(f'{path}: its "env_args" cannot be understood ({error}).') from error
    if name != scene.env_name or simulator != ROBOSUITE:
        matching_tasks = [
            task for task, other_scene in SCENES.items() if other_scene.env_name == name
        ]
        actual = (
            f"those of {matching_tasks[0]}"
            if matching_tasks
            else f"those of {name!r}, which is not among the tasks"
        )
        if simulator != ROBOSUITE:
            actual = f"those of a simulator that robomimic numbers {simulator}, not of robosuite"
        raise EpisodeError(
            f"{path} holds demonstrations of another environment than {scene.env_name}: {actual}."
        )
    supported = dict(_SUPPORTED)
    if relative and scene.arms == 1:  # then the base is turned as the world is
        supported["input_ref_frame"] = ("world", "base")
    differing = [
        f"{key} {controller[key]}"
        for key, values in supported.items()
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
            f"{path}: its controller takes actions from {input_min.tolist()} to "
            f"{input_max.tolist()} for {output_min.tolist()} to {output_max.tolist()}; only ranges "
            "around zero are understood."
        )
    return RecordedController(version, relative, input_max, output_max / input_max)


def _strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _arm_controller(configs: Any) -> dict[str, Any]:
    """The options of the arms' controller, from those of one robot or a list of them."""
    arms = []
    for config in configs if isinstance(configs, list) else [configs]:
        body_parts = config.get("body_parts")
        if body_parts is None:  # robosuite 1.4
            arms.append(config)
        else:
            body_parts = body_parts.get("arms", body_parts)
            arms += [body_parts[side] for side in ("right", "left") if side in body_parts]
    if not arms or any(arm != arms[0] for arm in arms):
        raise ValueError("no controller of the arms, or not one for all of them")
    return arms[0]


def check_delta_actions(path: Path, recorded: RecordedController) -> None:
    if not recorded.relative:
        raise EpisodeError(f"{path} holds absolute actions: set task.actions=absolute.")
    if not (np.allclose(recorded.scale, ACTION_SCALE) and np.allclose(recorded.limit, 1)):
        raise EpisodeError(
            f"{path}: its controller turns relative actions of up to {recorded.limit.tolist()} "
            f"into {(recorded.limit * recorded.scale).tolist()} m and rad, the environment's of up "
            f"to 1 into {ACTION_SCALE.tolist()}: set task.actions=absolute, which converts them."
        )
