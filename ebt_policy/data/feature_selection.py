"""Which features of a data set a policy learns from: the user's choice, or a guess.

Shapes: L rows of an episode, A action dimension.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ebt_policy.data.dataset import Dataset, Feature, Role
from ebt_policy.errors import ConfigError, did_you_mean

SAMPLED_EPISODES = 8  # episodes from which relative actions are guessed
# An action is a target of a state entry if it differs from it by less than this fraction of its
# own spread.
MAX_RELATIVE_SPREAD = 0.5
RESERVED = ("obs", "action", "row", "weight", "noise")  # names that batches use
# Differences of single entries of a rotation are not rotations.
# Names such as "eef.roll" are angles of a pose; "wrist_roll" is a joint.
_ROTATION = re.compile(
    r"quat|rot|euler|(^|[_.])q[xyzw]$|(^|[_.])r[xyz]$|(^|\.)(roll|pitch|yaw)$", re.IGNORECASE
)
SHORT_SIDE = 96  # shorter side of resized frames, in pixels
MAX_SWITCH_VALUES = 3  # most different values of an action entry that is a switch
CHUNK_SECONDS = 1.0  # duration of a chunk


@dataclass(frozen=True)
class FeatureSelection:
    """The features that a policy reads and predicts.

    Attributes:
        state_keys: features whose numbers are joined to the observation, in this order.
        action_key: feature that is predicted.
        cameras: name in the policy -> feature.
        image_size: (H, W) of the resized frames; None without cameras.
        relative_to: for each entry of the action, the entry of the observation that it is relative
            to, or None; None if all actions are absolute.
    """

    state_keys: tuple[str, ...]
    action_key: str
    cameras: dict[str, str]
    image_size: tuple[int, int] | None
    relative_to: list[int | None] | None


def select_features(
    dataset: Dataset,
    *,
    state_keys: Sequence[str] | None = None,
    action_key: str | None = None,
    cameras: Sequence[str] | str | None = "all",
    image_size: Sequence[int] | None = None,
    relative_to: Sequence[int | None] | str | None = "auto",
) -> FeatureSelection:
    """Return the features to use; guess those that are not given.

    Args:
        dataset: the data set.
        state_keys, action_key: names of features; None to guess by their roles.
        cameras: names of features, or the last part of their names; ``all`` for all cameras, None
            for none.
        image_size: (H, W) of the frames; None for a shorter side of `SHORT_SIDE` pixels.
        relative_to: as in `FeatureSelection`; ``auto`` compares actions with states.

    Raises:
        ConfigError: a feature is unknown or unsuitable, or a guess is impossible.
    """
    names = {role: _of_role(dataset, role) for role in Role}
    if action_key is None:
        actions = names[Role.ACTION]
        if len(actions) != 1:
            raise ConfigError(
                f"{dataset.path} has {'several actions' if actions else 'no feature named action'}"
                f"; set task.action_key to one of {', '.join(actions or _numeric(dataset))}."
            )
        action_key = actions[0]
    states = guess_states(names[Role.STATE]) if state_keys is None else list(state_keys)
    for option, chosen in (("task.action_key", [action_key]), ("task.state_keys", states)):
        for name in chosen:
            _check_numeric(dataset, name, option)
    if not states:
        raise ConfigError(
            f"{dataset.path} has no feature that looks like a state; set task.state_keys to some "
            f"of {', '.join(_numeric(dataset))}."
        )
    chosen = _camera_names(dataset, names[Role.IMAGE], cameras)
    size = None
    if chosen:
        size = _image_size(dataset.features[next(iter(chosen.values()))], image_size)
        _warn_of_crops(dataset, chosen, size)
    if relative_to == "auto":
        relative_to = guess_relative(dataset, states, action_key)
    elif isinstance(relative_to, str):
        raise ConfigError(
            f"task.relative_to={relative_to} must be auto, null or a list of entries of the "
            "observation."
        )
    return FeatureSelection(
        tuple(states), action_key, chosen, size, None if relative_to is None else list(relative_to)
    )


def guess_states(states: Sequence[str]) -> list[str]:
    """Return the features to read, of those that look like a state.

    In stores of this package, ``obs`` is what the policy reads, and ``state`` also describes the
    scene, which a real robot does not measure.

    >>> guess_states(["obs", "position", "state"]), guess_states(["joint_pos", "gripper"])
    (['obs'], ['joint_pos', 'gripper'])
    """
    return [name for name in states if re.split(r"[./]", name)[-1] == "obs"] or list(states)


def guess_relative(
    dataset: Dataset, state_keys: Sequence[str], action_key: str
) -> list[int | None] | None:
    """Return the observation entry that each action entry is a target of; None if there is none.

    An action entry belongs to the state entry of the same name, or of the same position in a state
    of the same size, if it is close to it in the data. Entries of rotations stay absolute, and so
    do switches, such as a gripper that is either opened or closed.
    """
    action = dataset.features[action_key]
    candidates = _matching_entries(dataset, state_keys, action)
    if not any(entry is not None for entry in candidates):
        return None
    episodes = np.linspace(0, len(dataset) - 1, min(SAMPLED_EPISODES, len(dataset))).astype(int)
    rows = [dataset.read(int(i), [*state_keys, action_key]) for i in np.unique(episodes)]
    targets = np.concatenate([_as_matrix(row[action_key]) for row in rows])
    states = np.concatenate([join_state(row, state_keys) for row in rows])
    close: list[int | None] = []
    for i, entry in enumerate(candidates):
        name = action.entries[i] if action.entries else ""
        is_switch = len(np.unique(targets[:, i])) <= MAX_SWITCH_VALUES
        if entry is None or is_switch or _ROTATION.search(name):
            close.append(None)
            continue
        spread = targets[:, i].std()
        difference = targets[:, i] - states[:, entry]
        close.append(
            entry if spread > 0 and difference.std() < MAX_RELATIVE_SPREAD * spread else None
        )
    return close if any(entry is not None for entry in close) else None


def join_state(rows: dict[str, np.ndarray], state_keys: Sequence[str]) -> np.ndarray:
    """Return the observation (L, Do) of the rows of an episode."""
    return np.concatenate([_as_matrix(rows[name]) for name in state_keys], axis=1)


def horizon_for(fps: float | None) -> int:
    """Return the horizon of a chunk of about one second: a multiple of 8 from 16 to 64.

    >>> horizon_for(10), horizon_for(30), horizon_for(None)
    (16, 32, 16)
    """
    return 16 if fps is None else min(64, max(16, 8 * round(fps * CHUNK_SECONDS / 8)))


def describe_selection(dataset: Dataset, selection: FeatureSelection) -> list[tuple[str, ...]]:
    """Return a row (feature, type, shape, use) for each feature."""
    rows = []
    for feature in dataset.features.values():
        uses = []
        if feature.name in selection.state_keys:
            uses.append("state")
        if feature.name == selection.action_key:
            count = sum(entry is not None for entry in selection.relative_to or ())
            relative = f", {count} of {feature.size} entries relative" if count else ", absolute"
            uses.append(f"action{relative}")
        uses += [f"camera {k}" for k, v in selection.cameras.items() if v == feature.name]
        shape = " x ".join(map(str, feature.shape))
        rows.append((feature.name, feature.dtype, shape, ", ".join(uses) or "not used"))
    return rows


def _matching_entries(
    dataset: Dataset, state_keys: Sequence[str], action: Feature
) -> list[int | None]:
    """Return the state entry of the same name or position as each action entry, or None."""
    named: dict[str, int] = {}
    by_position: list[int | None] = [None] * action.size
    start = 0
    for key in state_keys:
        feature = dataset.features[key]
        for i, name in enumerate(feature.entries):
            named.setdefault(name, start + i)
        if feature.size == action.size and by_position[0] is None:
            by_position = list(range(start, start + action.size))
        start += feature.size
    if action.entries and set(action.entries) & set(named):
        return [named.get(name) for name in action.entries]
    return by_position


def _of_role(dataset: Dataset, role: Role) -> list[str]:
    return [name for name, feature in dataset.features.items() if feature.role is role]


def _numeric(dataset: Dataset) -> list[str]:
    return [name for name, feature in dataset.features.items() if feature.role is not Role.IMAGE]


def _check_numeric(dataset: Dataset, name: str, option: str) -> None:
    if name not in dataset.features:
        hint = did_you_mean(name, dataset.features)
        raise ConfigError(
            f"{option}={name} is unknown; {dataset.path} has {', '.join(_numeric(dataset))}.{hint}"
        )
    if dataset.features[name].role is Role.IMAGE:
        raise ConfigError(f"{option}={name} has frames; name it in task.cameras.")


def camera_names(images: Sequence[str]) -> dict[str, str]:
    """Return name in the policy -> feature, for all features with frames.

    >>> camera_names(["observation.images.top", "observation.images.wrist"])
    {'top': 'observation.images.top', 'wrist': 'observation.images.wrist'}
    """
    short = {name: re.split(r"[./]", name)[-1] for name in images}
    is_unique = len(set(short.values())) == len(short)
    names = {(short[name] if is_unique else re.sub(r"[./]", "_", name)): name for name in images}
    return {(f"camera_{k}" if k in RESERVED else k): name for k, name in names.items()}


def _camera_names(
    dataset: Dataset, images: Sequence[str], cameras: Sequence[str] | str | None
) -> dict[str, str]:
    """Return name in the policy -> feature, for the requested cameras."""
    names = camera_names(images)
    if cameras == "all":
        return names
    chosen = {}
    for camera in [cameras] if isinstance(cameras, str) else cameras or ():
        matches = {k: v for k, v in names.items() if camera in (k, v)}
        if not matches:
            raise ConfigError(
                f"task.cameras={camera} is unknown; {dataset.path} has the cameras "
                f"{', '.join(names) or 'none'}."
            )
        chosen |= matches
    return chosen


def _warn_of_crops(dataset: Dataset, cameras: dict[str, str], size: tuple[int, int]) -> None:
    """Warn of cameras whose frames are cropped to another aspect ratio."""
    for key in cameras.values():
        height, width = dataset.features[key].shape[:2]
        if abs(height / width * size[1] / size[0] - 1) > 0.02:
            warnings.warn(
                f"frames of {key} ({height} x {width}) are cropped to the aspect ratio of "
                f"{size[0]} x {size[1]}; set task.image_size to change this.",
                stacklevel=3,
            )


def _image_size(feature: Feature, requested: Sequence[int] | None) -> tuple[int, int]:
    if requested is not None:
        if len(requested) != 2 or min(requested) < 8:
            raise ConfigError(
                f"task.image_size={list(requested)} must be [height, width], at least 8 each."
            )
        return int(requested[0]), int(requested[1])
    height, width = feature.shape[:2]
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return round(height * scale), round(width * scale)


def _as_matrix(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(len(rows), -1).astype(np.float32)
