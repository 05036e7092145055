"""Configuration of a task: its demonstrations, horizons and environment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Self

import numpy as np
import torch

from ebt_policy.config import options
from ebt_policy.data import adroit_door, push_t, recordings, robosuite, user_dataset
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.render_cache import rendered_observations
from ebt_policy.data.task_family import TASK_FAMILIES, DemonstrationConfig, TaskFamily
from ebt_policy.data.windows import Windows, long_enough
from ebt_policy.envs import registered_env_ids
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.plugins import is_user_module

# The families of this package, which register themselves.
BUILT_IN_FAMILIES = (adroit_door, push_t, recordings, robosuite, user_dataset)


# Options that only some families choose if they are null (see `TaskFamily.resolve`).
CHOSEN_OPTIONS = ("horizon", "n_action_steps", "validation_episodes")


@dataclass(frozen=True, kw_only=True)
class PolicyTaskConfig(DemonstrationConfig):
    """The section ``task`` of a configuration.

    Args:
        env: options of the environment, such as ``env_id`` and ``max_steps`` (see `EnvSpec`); None
            without an environment.
        max_prefix_len: condition the policy on up to this many committed actions, for control
            loops that predict a chunk while the last one is executed; 0 for none.
    """

    env: dict[str, Any] | None
    max_prefix_len: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        family = self.task_family
        for option in () if family.chooses_options else CHOSEN_OPTIONS:
            if getattr(self, option) is None:
                raise ConfigError(
                    f"task.{option} must be an integer for task={self.name}, got null."
                )
        for option in () if family.chooses_options else ("cameras", "relative_to"):
            if isinstance(value := getattr(self, option), str):
                raise ConfigError(
                    f"task.{option}={value} must be a list or null for task={self.name}."
                )
        family.check(self)

    @property
    def task_family(self) -> TaskFamily:
        """An instance of the family that ``family`` names."""
        return TASK_FAMILIES.get(self.family)()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the task from the configuration of a run."""
        return options(cls, config["task"], "task")

    def resolved(self) -> Self:
        """Return this task with the options that its family chooses from the data.

        Raises:
            UserError: an option does not fit the data, or the data cannot be read.
        """
        return replace(self, **self.task_family.resolve(self))

    @property
    def horizons(self) -> dict[str, int]:
        """T, To and Ta by name."""
        return {k: getattr(self, k) for k in ("horizon", "n_obs_steps", "n_action_steps")}

    def demonstrations(self) -> tuple[Episodes, str]:
        """Load episodes with "obs" and "action", and a one-line description of their source.

        Raises:
            ConfigError: ``episodes`` selects no demonstration.
        """
        episodes, note = self.task_family.load(self)
        if self.episodes is None or self.task_family.selects_episodes:
            return episodes, note
        indices = range(len(episodes))[self.episode_slice]
        if not indices:
            raise ConfigError(
                f"task.episodes={self.episodes} selects none of the {len(episodes)} demonstrations."
            )
        used = f" {len(indices)} of them are used (task.episodes={self.episodes})."
        return episodes.select(indices), note + used

    def split(self, episodes: Episodes, seed: int) -> tuple[Episodes, Episodes | None]:
        """Split episodes at random into a training set and a held-out set (None if empty).

        Without an environment, the split does not depend on the seed. With ``mirror``, the training
        set also has mirrored episodes. Episodes too short for a window are removed first, with a
        warning.

        Raises:
            ConfigError: no episode would be left to train on, or all are too short.
        """
        indices = np.flatnonzero(long_enough(episodes.lengths, **self.horizons))
        count = self.validation_episodes or 0
        if not 0 <= count < len(indices):
            raise ConfigError(
                f"task.validation_episodes={count} must leave some of the {len(indices)} "
                "demonstrations for training that are long enough for a window of "
                f"task.horizon={self.horizon}."
            )
        # Without an environment, policies are compared on the held-out episodes.
        order = np.random.default_rng(seed if self.env else 0).permutation(indices)
        training = episodes.select(np.sort(order[count:]))
        held_out = episodes.select(np.sort(order[:count])) if count else None
        if held_out is not None:
            held_out.arrays.pop("weight", None)  # for training only
        return (training + self.task_family.mirror(training) if self.mirror else training), held_out

    def windows(self, episodes: Episodes, device: torch.device | str = "cpu") -> Windows:
        """Return windows of episodes, with the horizons of this task.

        Raises:
            ConfigError: the task has cameras, but the episodes have no states to render.
        """
        arrays: dict[str, Any] = dict(episodes.arrays)
        cameras = list(self.cameras or [])
        if cameras and (frames := self.task_family.frames(self, episodes)):
            cameras = list(frames)
            is_small = sum(stored.nbytes for stored in frames.values()) <= self.resident_gb * 1e9
            arrays |= {k: v.read_all() if is_small else v for k, v in frames.items()}
        elif cameras:
            if "state" not in arrays:
                raise ConfigError(
                    f"the demonstrations of {self.name} have no states to render frames from; "
                    "remove task.cameras."
                )
            arrays = {**arrays, **rendered_observations(self.env_spec(), arrays["state"])}
        return Windows(arrays, episodes.ends, device=device, cameras=cameras, **self.horizons)

    def env_spec(self) -> EnvSpec:
        """Return the environment of the task, with the horizons of its policies.

        Raises:
            ConfigError: the task has no environment, or neither this package nor a module of
                ``--module`` has it.
        """
        if self.env is None:
            raise ConfigError(
                f"task={self.name} has no environment to play episodes in; set task.env.env_id."
            )
        horizons = {k: v for k, v in self.horizons.items() if k != "horizon"}
        _check_known(self.env.get("env_id"))
        return options(EnvSpec, {**self.env, **horizons}, "task.env")


def _check_known(env_id: Any) -> None:
    """Raise ConfigError for an environment of a module that ``--module`` does not name.

    Making the environment would import the module, and the configuration may come from an untrusted
    checkpoint.
    """
    if env_id in registered_env_ids():
        return
    module, colon, _ = str(env_id).partition(":")
    if not colon:
        suggestions = (
            get_close_matches(str(env_id), registered_env_ids(), cutoff=0.4)
            or registered_env_ids()[:1]
        )
        raise ConfigError(
            f"task.env.env_id={env_id} is unknown; similar ones are {', '.join(suggestions)}. For "
            "an environment of another package, write MODULE:ID and add --module MODULE."
        )
    if not is_user_module(module):
        raise ConfigError(
            f"task.env.env_id={env_id} belongs to the module {module}, which is not part of this "
            f"package; to run its code, add --module {module} to the command."
        )
