"""Settings that depend on the data set: the sections of ebt_policy's configuration, statistics."""

from dataclasses import asdict
from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import ACTION

from ebt_policy.cli.composition import compose_config
from ebt_policy.data.episodes import EpisodeError
from ebt_policy.data.feature_selection import camera_names
from ebt_policy.data.windows import Windows, fit_normalizer
from ebt_policy.errors import UserError
from ebt_policy.policies.hub_upload import without_folders
from ebt_policy.policies.task_config import PolicyTaskConfig

from .configuration_ebt import EBTConfig

COMPLETE_COPY = (
    "The numbers of all episodes must be on this computer, so --dataset.streaming=true and "
    "--dataset.episodes need a complete copy (--dataset.root)."
)
SECTIONS = ("task", "size", "model", "objective", "vision")


def fit_to_dataset(config: EBTConfig, dataset_meta: LeRobotDatasetMetadata) -> None:
    """Set ``sections`` and ``normalizer`` of a configuration from a data set.

    The numbers of all episodes are read, because LeRobot's statistics do not include relative
    actions. Frames are not read.

    Raises:
        ValueError: an option is invalid, or the data set cannot be read.
    """
    try:
        _fit(config, dataset_meta)
    except UserError as error:
        copy_hint = f" {COMPLETE_COPY}" if isinstance(error, EpisodeError) else ""
        raise ValueError(
            f"--policy.type=ebt cannot be trained on {dataset_meta.root}: {error}{copy_hint}"
        ) from error


def _fit(config: EBTConfig, dataset_meta: LeRobotDatasetMetadata) -> None:
    choices = [f"size={config.size}", f"objective={config.objective}", f"vision={config.vision}"]
    composed = compose_config("train", ["task=dataset", *choices])
    actions_per_token = composed["model"]["actions_per_token"]
    if config.horizon % actions_per_token:
        raise ValueError(
            f"--policy.horizon={config.horizon} must be a multiple of {actions_per_token}."
        )
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
    images = [k for k, f in dataset_meta.features.items() if f["dtype"] in ("image", "video")]
    names = {key: name for name, key in camera_names(images).items()}
    config.normalizer = fit_normalizer(windows, task.relative_entries).to_json()
    config.sections = {name: composed[name] for name in SECTIONS} | {
        "lerobot": config.plug_in_section,
        "task": without_folders(asdict(task)),  # LeRobot may upload the configuration
        "shape": {
            "obs_dim": windows.obs.shape[1],
            "action_dim": windows.action.shape[1],
            "relative_to": task.relative_entries,
            "cameras": {names[key]: task.image_size for key in cameras} or None,
            "max_prefix_len": task.max_prefix_len,
            **task.horizons,
        },
    }
