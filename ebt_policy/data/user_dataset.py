"""The task ``dataset``: learn from a data set of the user, without an environment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ebt_policy.data.dataset import Dataset, pinned
from ebt_policy.data.episodes import Episodes, check_finite
from ebt_policy.data.feature_selection import (
    FeatureSelection,
    describe_selection,
    horizon_for,
    join_state,
    select_features,
)
from ebt_policy.data.frame_cache import StoredFrames, cached_frames
from ebt_policy.data.joined_dataset import HUMAN, open_datasets
from ebt_policy.data.rotation_checks import rotation_warnings
from ebt_policy.data.task_family import TASK_FAMILIES, DemonstrationConfig, TaskFamily
from ebt_policy.data.windows import long_enough
from ebt_policy.errors import ConfigError

HELD_OUT_FRACTION = 0.1  # fraction of the episodes that are held out by default
MIN_SPLIT = 5  # From this number of episodes on, at least two are held out.


@TASK_FAMILIES.register("dataset")
class DatasetFamily(TaskFamily):
    """Data sets of the formats of `open_dataset`."""

    has_scripted_expert = False
    chooses_options = selects_episodes = True

    def check(self, config: DemonstrationConfig) -> None:
        super().check(config)
        if not config.path:
            raise ConfigError("missing required option task.path=FILE_OR_FOLDER of a data set.")
        if config.mask is not None and config.episodes is not None:
            raise ConfigError("task.mask and task.episodes exclude each other; leave one out.")

    def resolve(self, config: DemonstrationConfig) -> dict[str, Any]:
        with open_datasets(config.sources) as dataset:
            selection = select(dataset, config)
            fps = config.fps if config.fps is not None else dataset.fps
            horizon = config.horizon if config.horizon is not None else horizon_for(fps)
            steps = horizon // 2 if config.n_action_steps is None else config.n_action_steps
            count = config.validation_episodes
            if count is None:
                lengths = dataset.lengths[selected_episodes(dataset, config)]
                sizes = {"horizon": horizon, "n_action_steps": steps}
                with warnings.catch_warnings(action="ignore"):  # the split warns of short episodes
                    usable = int(
                        long_enough(lengths, n_obs_steps=config.n_obs_steps, **sizes).sum()
                    )
                least = 1 if usable < MIN_SPLIT else 2  # Two episodes have an interval.
                count = min(usable - 1, max(least, round(HELD_OUT_FRACTION * usable)))
            sources = config.sources
            if isinstance(sources, str):
                path: str | list[str] = pinned(sources, dataset.path)
            else:
                path = [pinned(s, p) for s, p in zip(sources, dataset.paths, strict=True)]
        return {
            "path": path,
            "state_keys": list(selection.state_keys),
            "action_key": selection.action_key,
            "cameras": list(selection.cameras.values()) or None,
            "image_size": None if selection.image_size is None else list(selection.image_size),
            "relative_to": selection.relative_to,
            "fps": fps,
            "horizon": horizon,
            "n_action_steps": steps,
            "validation_episodes": count,
        }

    def load(self, config: DemonstrationConfig) -> tuple[Episodes, str]:
        with open_datasets(config.sources) as dataset:
            selection, selected = select(dataset, config), selected_episodes(dataset, config)
            keys = [*selection.state_keys, selection.action_key]
            each: dict[str, list[np.ndarray]] = {name: [] for name in keys}
            for episode in selected:
                rows = dataset.read(episode, keys)
                for name in keys:
                    check_finite(rows[name], name, str(dataset.path), episode)
                    each[name].append(join_state(rows, [name]))
            for name, matrices in each.items():
                entries = dataset.features[name].entries
                for message in rotation_warnings(name, entries, matrices):
                    warnings.warn(message, stacklevel=2)
            states = [np.concatenate(each[name]) for name in selection.state_keys]
            action = np.concatenate(each[selection.action_key])
            arrays = {"obs": np.concatenate(states, axis=1), "action": action}
            arrays["row"] = np.arange(len(arrays["obs"]))  # finds the frames of the episodes
            if (weights := human_weights(dataset, config, selected)) is not None:
                arrays["weight"] = weights
            attrs = {} if config.fps is None else {"rate_hz": config.fps}
            episodes = Episodes(arrays, np.cumsum(dataset.lengths[selected]), attrs)
            return episodes, describe(dataset, selection, config, selected)

    def frames(self, config: DemonstrationConfig, episodes: Episodes) -> dict[str, StoredFrames]:
        with open_datasets(config.sources) as dataset:
            selection, selected = select(dataset, config), selected_episodes(dataset, config)
            assert selection.image_size is not None
            frames = cached_frames(
                dataset,
                list(selection.cameras.values()),
                selected,
                selection.image_size,
                config.frame_cache_gb,
            )
            rows = episodes.arrays["row"]
            return {
                name: StoredFrames(frames[key], rows) for name, key in selection.cameras.items()
            }


def select(dataset: Dataset, config: DemonstrationConfig) -> FeatureSelection:
    """Return the features that a configuration selects."""
    return select_features(
        dataset,
        state_keys=config.state_keys,
        action_key=config.action_key,
        cameras=config.cameras,
        image_size=config.image_size,
        relative_to=config.relative_to,
    )


def selected_episodes(dataset: Dataset, config: DemonstrationConfig) -> list[int]:
    """Return the episodes that ``task.episodes`` or ``task.mask`` selects.

    Raises:
        ConfigError: there are none.
    """
    if config.mask is None:
        selected = list(range(len(dataset))[config.episode_slice])
        if not selected:
            raise ConfigError(
                f"task.episodes={config.episodes} selects none of the {len(dataset)} episodes."
            )
        return selected
    subsets = dataset.subsets()
    if config.mask not in subsets:
        raise ConfigError(
            f"task.mask={config.mask}: {dataset.path} has no such subset; it has "
            f"{', '.join(sorted(subsets)) or 'none at all'}."
        )
    if not subsets[config.mask]:
        raise ConfigError(f"task.mask={config.mask} has no episodes.")
    return subsets[config.mask]


def human_weights(
    dataset: Dataset, config: DemonstrationConfig, selected: Sequence[int]
) -> np.ndarray | None:
    """Return the weight (N,) of each row of the selected episodes; None if all weights are 1.

    Raises:
        ConfigError: a weight is set, but the data set does not tell who determined the actions.
    """
    weights = (config.policy_weight, config.human_weight)
    if weights == (1, 1):
        return None
    if HUMAN not in dataset.features:
        raise ConfigError(
            f"{dataset.path} has no column {HUMAN!r}, so task.human_weight and task.policy_weight "
            "must be 1."
        )
    flags = [dataset.read(i, [HUMAN])[HUMAN].reshape(-1).astype(bool) for i in selected]
    rows = [np.where(is_human, weights[1], weights[0]) for is_human in flags]
    if unused := sum(not row.any() for row in rows):
        warnings.warn(
            f"{unused} of {len(rows)} episodes of {dataset.path} are not trained on, because no "
            "action in them has a positive weight.",
            stacklevel=2,
        )
    return np.concatenate(rows)


def describe(
    dataset: Dataset,
    selection: FeatureSelection,
    config: DemonstrationConfig,
    selected: Sequence[int],
) -> str:
    """Return the source of the data and the use of each feature as a table."""
    rows = [("feature", "type", "shape", "use"), *describe_selection(dataset, selection)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(word.ljust(w) for word, w in zip(row, widths, strict=True)) for row in rows]
    rate = "unknown rate" if config.fps is None else f"{config.fps:g} Hz"
    total = int(dataset.lengths[selected].sum())
    part = f" of {len(dataset)}" if len(selected) < len(dataset) else ""
    summary = (
        f"{config.name}: {len(selected)}{part} episodes, {total:,} rows, {rate}, {dataset.format} "
        f"format, from {dataset.path}."
    )
    hint = "Set task.state_keys, task.action_key, task.cameras or task.relative_to to change this."
    return "\n".join([summary, *(line.rstrip() for line in lines), hint])
