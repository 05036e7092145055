"""Settings that depend on the data set: the sections of ebt_policy's configuration, statistics."""

from dataclasses import asdict
from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import ACTION

from ebt_policy.cli.composition import compose_config
from ebt_policy.data.windows import Windows, fit_normalizer
from ebt_policy.policies.task_config import PolicyTaskConfig

from .configuration_ebt import EBTConfig

SECTIONS = ("task", "size", "model", "objective", "vision")


def fit_to_dataset(config: EBTConfig, dataset_meta: LeRobotDatasetMetadata) -> None:
    """Set ``sections`` and ``normalizer`` of a configuration from a data set.

    The numbers of all episodes are read, because the statistics of relative actions are not among
    those of LeRobot. Frames are not read.

    Raises:
        UserError: an option is invalid, or the data set cannot be read.
    """
    choices = [f"size={config.size}", f"objective={config.objective}", f"vision={config.vision}"]
    composed = compose_config("train", ["task=dataset", *choices])
    cameras = list(config.image_features)
    options = {
        "path": str(dataset_meta.root),
        "state_keys": list(config.state_features),
        "action_key": ACTION,
        "cameras": cameras or None,
        "image_size": config.resize_shape and list(config.resize_shape),
        "relative_to": "auto" if config.relative_actions else None,
        "horizon": config.horizon,
        "n_obs_steps": config.n_obs_steps,
        "n_action_steps": config.n_action_steps,
        "max_prefix_len": config.max_prefix_len,
        "validation_episodes": 0,
    }
    composed["task"] |= options
    task = PolicyTaskConfig.from_config(composed).resolved()
    episodes, _ = task.demonstrations()
    arrays: dict[str, Any] = dict(episodes.arrays)
    windows = Windows(arrays, episodes.ends, **task.horizons)
    config.normalizer = fit_normalizer(windows, task.relative_entries).to_json()
    config.sections = {name: composed[name] for name in SECTIONS} | {
        "task": asdict(task),
        "shape": {
            "obs_dim": windows.obs.shape[1],
            "action_dim": windows.action.shape[1],
            "relative_to": task.relative_entries,
            "cameras": {camera_name(key): task.image_size for key in cameras} or None,
            "max_prefix_len": task.max_prefix_len,
            **task.horizons,
        },
    }


def camera_name(key: str) -> str:
    """Return the name of a camera in ebt_policy.

    >>> camera_name("observation.images.top")
    'images_top'
    """
    return key.removeprefix("observation.").replace(".", "_")
