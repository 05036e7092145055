"""Demonstrations of Adroit's door task (Rajeswaran et al. 2018)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ebt_policy.data.episodes import EpisodeError, Episodes, check_episodes
from ebt_policy.data.task_family import TASK_FAMILIES, DemonstrationConfig, TaskFamily
from ebt_policy.io.local_data import local_data
from ebt_policy.io.paths import reason


@TASK_FAMILIES.register("adroit_door")
class AdroitDoorFamily(TaskFamily):
    """The door task of the Adroit hand."""

    has_scripted_expert = False

    def load(self, config: DemonstrationConfig) -> tuple[Episodes, str]:
        episodes, origin = load_adroit_door(config.single_path)
        return episodes, f"{config.name}: {len(episodes)} demonstrations {origin}."


def load_adroit_door(path: str | None) -> tuple[Episodes, str]:
    """Load the 25 human demonstrations of Rajeswaran et al. 2018: obs (N, 39), action (N, 28).

    Args:
        path: an .npz file with `observations`, `actions`, and `episode_ends`; by default
            $EBT_POLICY_DATA/adroit_door_human/door_human_25demos.npz.

    Raises:
        EpisodeError: the file is missing or malformed.
    """
    file = Path(path) if path else local_data("adroit_door_human", "door_human_25demos.npz")
    if file is None or not file.is_file():
        raise EpisodeError(
            f"There are no Adroit demonstrations{f' at {file}' if file else ''}; put "
            "door_human_25demos.npz into $EBT_POLICY_DATA/adroit_door_human, or set task.path=..."
        )
    try:
        with np.load(file) as archive:
            obs, actions = archive["observations"], archive["actions"].clip(-1.0, 1.0)
            ends = archive["episode_ends"]
    except Exception as error:  # errors of NumPy and its dependencies share no base class
        raise EpisodeError(
            f"{file} cannot be read ({reason(error)}); download it again."
        ) from error
    if obs.shape[1:] != (39,) or actions.shape[1:] != (28,):
        raise EpisodeError(f"{file}: observations must have 39 columns and actions 28.")
    check_episodes({"obs": obs, "action": actions}, ends, str(file))
    stored = Episodes({"obs": obs, "action": actions}, ends)
    if (single := np.flatnonzero(stored.lengths < 2)).size:
        raise EpisodeError(f"{file}: episode {single[0]} has a single row; two are needed.")
    # The first observation of an episode precedes the placement of palm and handle.
    episodes = [
        {key: rows[1:] for key, rows in stored.episode(i).items()} for i in range(len(stored))
    ]
    arrays = {
        key: np.concatenate([episode[key] for episode in episodes]).astype(np.float32)
        for key in stored.arrays
    }
    ends = np.cumsum(stored.lengths - 1)
    return Episodes(arrays, ends, {"rate_hz": 100}), f"by humans, from {file}"
