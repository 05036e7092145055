"""Where the demonstrations of a task come from: recorded here, published, or given by the user."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ebt_policy.data import robomimic
from ebt_policy.data.episodes import (
    EpisodeError,
    Episodes,
    check_episodes,
    check_meaning,
    read_episodes,
)
from ebt_policy.io.download import DownloadError
from ebt_policy.io.paths import reason

RECORDINGS = Path("demos")  # where `python -m ebt_policy.record` writes, as runs/ and results/


def local_data(*parts: str) -> Path | None:
    """Return a file below $EBT_POLICY_DATA, or None if it is not there.

    Raises:
        EpisodeError: the variable names no folder.
    """
    named = os.environ.get("EBT_POLICY_DATA")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise EpisodeError(
            f"EBT_POLICY_DATA={named} is no folder; correct the variable, or unset it."
        )
    file = folder.joinpath(*parts)
    return file if file.exists() else None


def recording(name: str) -> Path:
    """Where the recorded demonstrations of a task lie: robosuite's as robomimic's do."""
    robosuite = name in {scene.folder for scene in robomimic.SCENES.values()}
    return RECORDINGS / f"{name}{'.hdf5' if robosuite else '.zarr.zip'}"


def record_command(name: str) -> str:
    """What a user types to record them."""
    family, _, scene = name.partition("-")
    task = f"task={family} task.scene={scene}" if scene else f"task={name}"
    return f"python -m ebt_policy.record {task}"


def is_store(path: str | None) -> bool:
    """Whether a path is an episode store, as a control loop records one, and no other file."""
    return path is not None and (Path(path).is_dir() or path.endswith(".zip"))


def load_recorded(
    name: str, path: str | None, rate_hz: float | None = None
) -> tuple[Episodes, str]:
    """Demonstrations with "obs", "action" and, if recorded here, "state" from an episode store.

    Args:
        rate_hz: of the task, which a store that says its own must have.

    Raises:
        EpisodeError: there is none, it is malformed, or has no such arrays.
    """
    file = Path(path) if path is not None else recording(name)
    if not file.exists():
        how = f"record them with: {record_command(name)}" if path is None else "check task.path"
        raise EpisodeError(f"There are no demonstrations of {name} at {file}; {how}")
    episodes = read_episodes(file)
    if missing := [key for key in ("obs", "action") if key not in episodes.arrays]:
        raise EpisodeError(
            f"{file} has no {' and no '.join(missing)}, which {name} needs; it has "
            f"{', '.join(episodes.arrays)}."
        )
    if rate_hz is not None:
        check_meaning(episodes.attrs, str(file), rate_hz=rate_hz)
    return episodes, f"from {file}"


def load_robomimic(
    name: str,
    scene: str,
    path: str | None,
    demos: str | None,
    read: Callable[[Path], Episodes],
) -> tuple[Episodes, str]:
    """Demonstrations of a robosuite task, from a file in robomimic's format.

    Args:
        name, scene: of the task, here and in `robomimic.SCENES`.
        path: a file of the user's.
        demos: "expert" for those recorded here, "human" for the published ones of one proficient
            human; None for the first of these two that can be had.
        read: file -> episodes.

    Raises:
        EpisodeError, DownloadError: they cannot be had, or the file is malformed.
    """
    if path is not None:
        return read(Path(path)), f"from {path}"
    recorded = recording(name)
    if demos != "human" and recorded.exists():
        return read(recorded), f"by a scripted expert, from {recorded}"
    if demos == "expert":
        raise EpisodeError(f"There is no {recorded}; record it with: {record_command(name)}")
    folder = robomimic.SCENES[scene].folder
    local = local_data("robomimic", folder, "ph", "low_dim_v15.hdf5")
    try:
        file = local or robomimic.published(scene)
    except DownloadError as error:
        raise DownloadError(
            f"{str(error).rstrip('.')}; or record a scripted expert's demonstrations with: "
            f"{record_command(name)}"
        ) from error
    return read(file), f"by a human, from {file}"


def load_adroit_door(path: str | None) -> tuple[Episodes, str]:
    """The 25 human demonstrations of Rajeswaran et al. 2018: obs (N, 39), action (N, 28).

    Args:
        path: an .npz file with `observations`, `actions`, and `episode_ends`; by default
            $EBT_POLICY_DATA/adroit_door_human/door_human_25demos.npz.

    Raises:
        EpisodeError: it is missing or malformed.
    """
    file = Path(path) if path else local_data("adroit_door_human", "door_human_25demos.npz")
    if file is None or not file.is_file():
        raise EpisodeError(
            f"There are no Adroit demonstrations{f' at {file}' if file else ''}: put "
            "door_human_25demos.npz into $EBT_POLICY_DATA/adroit_door_human, or give task.path=..."
        )
    try:
        with np.load(file) as stored:
            obs, actions = stored["observations"], stored["actions"].clip(-1.0, 1.0)
            ends = stored["episode_ends"]
    except Exception as error:  # those of NumPy and of what it stands on share no base
        raise EpisodeError(
            f"{file} cannot be read ({reason(error)}); download it again."
        ) from error
    if obs.shape[1:] != (39,) or actions.shape[1:] != (28,):
        raise EpisodeError(f"{file}: observations must be 39 wide and actions 28.")
    check_episodes({"obs": obs, "action": actions}, ends, str(file))
    whole = Episodes({"obs": obs, "action": actions}, ends)
    if (single := np.flatnonzero(whole.lengths < 2)).size:
        raise EpisodeError(f"{file}: episode {single[0]} has a single row, of which none is used.")
    # The first observation of each was made before the simulator had placed palm and handle.
    episodes = [
        {key: rows[1:] for key, rows in whole.episode(i).items()} for i in range(len(whole))
    ]
    arrays = {
        key: np.concatenate([one[key] for one in episodes]).astype(np.float32)
        for key in whole.arrays
    }
    shorter = np.cumsum(whole.lengths - 1)
    return Episodes(arrays, shorter, {"rate_hz": 100}), f"by humans, from {file}"
