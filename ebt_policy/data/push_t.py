"""Push-T demonstrations: 206 human ones from Diffusion Policy, or the ones in this package.

State (..., 5) = agent x, agent y, block x, block y in pixels of the 512 x 512 scene, block angle in
radians. Observation (..., 20) = nine keypoints of the T (x, y each), then agent x, y. Action
(..., 2) = target position of the agent in pixels. Rate 10 Hz.
"""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ebt_policy.data.episode_store import read_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes, check_meaning
from ebt_policy.data.task_family import TASK_FAMILIES, DemonstrationConfig, TaskFamily
from ebt_policy.envs.push_t_geometry import GOAL, observation
from ebt_policy.errors import ConfigError
from ebt_policy.io.download import DownloadError, cache_dir, fetch
from ebt_policy.io.local_data import local_data

URL = "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"
# The archive has no published checksum, so its content is checked (see `content_digest`).
HUMAN_DIGEST = "095007df5123ff64d0ef28170c5ee8c71acb85423ef6305c0d7f6e6b4aaf728c"


# Attributes of a file of Push-T episodes.
ATTRS: dict[str, Any] = {
    "rate_hz": 10,
    "units": {"state": "px, px, px, px, rad", "action": "px"},
    "roles": {"state": "state", "action": "action"},
}


def mirror(points: np.ndarray) -> np.ndarray:
    """Mirror scene positions (..., 2), in px, at the goal's axis of symmetry, x + y = 512.

    Goal, T and the square table are symmetric, so that a mirrored demonstration is valid, too. Only
    the walls are not exactly symmetric: they are one pixel off centre.
    """
    return 512.0 - points[..., ::-1]


def mirrored(episodes: Episodes) -> Episodes:
    """Return the mirror images of Push-T episodes with "state" and "action"."""
    state = episodes.arrays["state"].astype(np.float64)
    angle = 2 * GOAL[2] - state[:, 4:]
    state = np.concatenate([mirror(state[:, :2]), mirror(state[:, 2:4]), angle], axis=-1)
    arrays = {"state": state, "action": mirror(episodes.arrays["action"].astype(np.float64))}
    return _with_observations(Episodes(arrays, episodes.ends, episodes.attrs))


def aligned(episodes: Episodes) -> Episodes:
    """Return Push-T episodes, each moved as a whole so that it ends with the block on the goal.

    Pushing does not depend on the position on the table (apart from the walls), so that a moved
    demonstration is valid, too. The human demonstrations end about 4 px and 3 degrees from the
    goal, with a coverage of at most 0.90, but an episode succeeds at 0.95.
    """
    starts = np.concatenate([[0], episodes.ends[:-1]])
    final = np.repeat(episodes.ends - 1, episodes.ends - starts)  # for each row
    state = episodes.arrays["state"].astype(np.float64)
    end, rotation = state[final, 2:4], GOAL[2] - state[final, 4:]
    cos, sin = np.cos(rotation), np.sin(rotation)

    def move(points: np.ndarray) -> np.ndarray:
        x, y = np.split(points.astype(np.float64) - end, 2, axis=-1)
        return np.concatenate([cos * x - sin * y, sin * x + cos * y], axis=-1) + GOAL[:2]

    moved_state = [move(state[:, :2]), move(state[:, 2:4]), state[:, 4:] + rotation]
    arrays = {
        "state": np.concatenate(moved_state, axis=-1),
        "action": move(episodes.arrays["action"]).clip(0.0, 512.0),
    }
    return _with_observations(Episodes(arrays, episodes.ends, episodes.attrs))


def content_digest(episodes: Episodes) -> str:
    """Return the SHA-256 of episode_ends (int64), state and action (float32), little-endian."""
    digest = hashlib.sha256(episodes.ends.astype("<i8").tobytes())
    for key in ("state", "action"):
        digest.update(np.ascontiguousarray(episodes.arrays[key], dtype="<f4").tobytes())
    return digest.hexdigest()


EXPERT = "by the package's own expert, an energy policy trained on the human ones"


def load_push_t(
    path: str | os.PathLike[str] | None = None,
    demos: Literal["human", "expert"] | None = None,
) -> tuple[Episodes, str]:
    """Load Push-T demonstrations: obs (N, 20), action (N, 2) and state (N, 5), float32.

    Args:
        path: a zarr folder or zip with the keys state and action. If None, the human demonstrations
            are read from $EBT_POLICY_DATA/pusht or the cache, or downloaded from the Diffusion
            Policy site.
        demos: "human" for the human demonstrations, "expert" for the demonstrations in this
            package. None uses the human ones, and those in the package if a download fails.

    Returns:
        The episodes, and a one-line description of their source.

    Raises:
        EpisodeError: the file at `path` (or in $EBT_POLICY_DATA) is missing or malformed.
        DownloadError: demos="human", and the file cannot be downloaded or is not the published one.
        ConfigError: `demos` is unknown, or "expert" together with a path.
    """
    if demos not in (None, "human", "expert"):
        raise ConfigError(f"task.demos={demos!r} is unknown; use human, expert or null.")
    if demos == "expert":
        if path is not None:
            raise ConfigError(
                "task.demos=expert uses the demonstrations in the package; remove task.path."
            )
        return _shipped("")
    if path is not None:
        return _describe(_read_push_t(Path(path)), f"from {path}")
    if (file := local_data("pusht", "pusht_cchi_v7_replay.zarr.zip")) is not None:
        return _describe(_read_push_t(file), f"by humans, from {file}")
    try:
        episodes = _download()
    except DownloadError as error:
        if demos == "human":
            raise
        return _shipped(f" (the human ones are not available: {str(error).rstrip('.')})")
    return _describe(episodes, f"by humans, from {cache_dir() / 'pusht.zip'}")


def _download() -> Episodes:
    file = fetch(URL, "pusht.zip")
    try:
        episodes = _read_push_t(file)
        if content_digest(episodes) == HUMAN_DIGEST:
            return episodes
        reason = "other values"
    except EpisodeError as error:
        reason = str(error)
    file.unlink(missing_ok=True)
    raise DownloadError(
        f"the file from {URL} does not contain the published Push-T demonstrations ({reason}) and "
        "was deleted; try again, or set task.path to a copy."
    )


def _read_push_t(path: Path) -> Episodes:
    # Read only two arrays. The images have 700 MB when decompressed, and observations are computed
    # from the states, so that all sources use the same function.
    episodes = read_episodes(path, keys=("state", "action"))
    source, rate_hz = str(path), ATTRS["rate_hz"]
    check_meaning(episodes.attrs, source, rate_hz=rate_hz, units={"state": "px", "action": "px"})
    for key, width in (("state", 5), ("action", 2)):
        shape = episodes.arrays[key].shape
        if len(shape) != 2 or shape[1] != width:
            raise EpisodeError(
                f'{path}: Push-T "{key}" must have shape (rows, {width}), got {shape}.'
            )
    return episodes


def _shipped(note: str) -> tuple[Episodes, str]:
    resource = resources.files("ebt_policy.data") / "demos" / "push_t_expert.zarr.zip"
    with resources.as_file(resource) as file:
        return _describe(_read_push_t(file), f"{EXPERT}{note}")


def _describe(raw: Episodes, origin: str) -> tuple[Episodes, str]:
    return _with_observations(raw), f"Push-T: {len(raw)} demonstrations {origin}."


def _with_observations(raw: Episodes) -> Episodes:
    arrays = {
        "obs": observation(raw.arrays["state"]),
        "action": raw.arrays["action"].astype(np.float32),
        "state": raw.arrays["state"].astype(np.float32),
    }
    roles, units = {**ATTRS["roles"], "obs": "observation"}, {**ATTRS["units"], "obs": "px"}
    return Episodes(arrays, raw.ends, {**ATTRS, "roles": roles, "units": units})


@TASK_FAMILIES.register("push_t")
class PushTFamily(TaskFamily):
    """The task of pushing the T onto its target."""

    has_scripted_expert = False
    recording_attrs = ATTRS

    def check(self, config: DemonstrationConfig) -> None:
        """Accept ``task.align`` and ``task.mirror``."""

    def load(self, config: DemonstrationConfig) -> tuple[Episodes, str]:
        episodes, note = load_push_t(path=config.single_path, demos=config.demos)
        return (aligned(episodes) if config.align else episodes), note

    def mirror(self, episodes: Episodes) -> Episodes:
        return mirrored(episodes)
