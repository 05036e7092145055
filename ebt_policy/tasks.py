"""Tasks by name: their demonstrations and their environment."""

from __future__ import annotations

from typing import Any

from ebt_policy.data.episodes import Episodes
from ebt_policy.data.push_t import load_push_t, mirrored
from ebt_policy.models.policy import ConfigError
from envs.spec import EnvSpec

DEMONSTRATIONS = {"push_t": load_push_t}


def load_demonstrations(task: dict[str, Any]) -> tuple[Episodes, str]:
    """Episodes with "obs" and "action", and one line saying which they are."""
    name = task["name"]
    if name not in DEMONSTRATIONS:
        raise ConfigError(f"task={name} is unknown; there are {', '.join(DEMONSTRATIONS)}.")
    return DEMONSTRATIONS[name](path=task["path"], demos=task["demos"])


def augment(task: dict[str, Any], episodes: Episodes) -> Episodes:
    """Training episodes with what the symmetry of the task makes of them."""
    return episodes + mirrored(episodes) if task["mirror"] else episodes


def env_spec(task: dict[str, Any]) -> EnvSpec:
    """The environment of a task, with the horizons that its policies use."""
    return EnvSpec(
        n_obs_steps=task["n_obs_steps"], n_action_steps=task["n_action_steps"], **task["env"]
    )
