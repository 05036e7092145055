"""Tasks by name: their demonstrations and their environment."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Self

import numpy as np
import torch

from ebt_policy.config import options
from ebt_policy.data import demonstrations as sources
from ebt_policy.data import robomimic
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.push_t import aligned, load_push_t, mirrored
from ebt_policy.data.windows import Windows, long_enough
from ebt_policy.envs import registered_env_ids
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.plugins import is_user_module

FAMILIES = ("push_t", "robosuite", "metaworld", "adroit_door")


@dataclass(frozen=True)
class PolicyTaskConfig:
    """The section ``task`` of a configuration.

    Args:
        name: of the task, in tables and file names.
        family: whose demonstrations it has, one of `FAMILIES`; by default its name.
        scene: which task of its family.
        demos, path: which demonstrations, as their loader understands them; what a control loop
            recorded serves every task.
        mask: a subset that a robomimic file names.
        actions: "delta" or "absolute", for robosuite.
        horizon, n_obs_steps, n_action_steps: T, To, Ta.
        validation_episodes: demonstrations held out of training.
        env: ``env_id`` and ``max_steps`` of its environment (see `EnvSpec`).
        relative_to: entries of the newest observation that actions are relative to (see
            `PolicyShape`).
        align: move each demonstration so that it ends exactly on the goal (Push-T).
        mirror: learn from the mirror images of the demonstrations, too (Push-T).
        cameras: names of those that the policy sees.
        max_prefix_len: condition the policy on up to this many committed actions, for control
            loops in which it predicts while the last chunk is executed; 0 for none.
    """

    name: str
    demos: Literal["human", "expert"] | None
    path: str | None
    horizon: int
    n_obs_steps: int
    n_action_steps: int
    validation_episodes: int
    env: dict[str, Any]
    family: str | None = None
    scene: str | None = None
    mask: str | None = None
    actions: Literal["delta", "absolute"] = "delta"
    relative_to: list[int | None] | None = None
    align: bool = False
    mirror: bool = False
    cameras: list[str] | None = None
    max_prefix_len: int = 0

    def __post_init__(self) -> None:
        if self.family is None:
            object.__setattr__(self, "family", self.name)
        if self.family not in FAMILIES:
            raise ConfigError(f"task={self.family} is unknown; there are {', '.join(FAMILIES)}.")
        for key, known in {
            "demos": (None, "human", "expert"),
            "actions": ("delta", "absolute"),
        }.items():
            if getattr(self, key) not in known:
                words = ", ".join("null" if word is None else word for word in known)
                raise ConfigError(f"task.{key}={getattr(self, key)!r} is unknown; use {words}.")
        if self.family == "robosuite" and self.scene not in robomimic.SCENES:
            raise ConfigError(
                f"task.scene must be one of {', '.join(robomimic.SCENES)}, got {self.scene}."
            )
        if self.family == "robosuite" and self.actions == "delta" and self.relative_to:
            raise ConfigError(
                "task.relative_to is for absolute goals; with task.actions=delta write "
                "task.relative_to=null."
            )
        if self.family != "push_t" and (self.align or self.mirror):
            raise ConfigError("task.align and task.mirror belong to Push-T; leave them out.")

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """From the configuration of a run."""
        return options(cls, config["task"], "task")

    @property
    def horizons(self) -> dict[str, int]:
        """T, To and Ta by name."""
        return {k: getattr(self, k) for k in ("horizon", "n_obs_steps", "n_action_steps")}

    def demonstrations(self) -> tuple[Episodes, str]:
        """Episodes with "obs" and "action", and one line saying which they are."""
        if self.family == "push_t":
            episodes, note = load_push_t(path=self.path, demos=self.demos)
            return (aligned(episodes) if self.align else episodes), note
        if self.family == "robosuite" and not sources.is_store(self.path):
            assert self.scene is not None
            episodes, origin = sources.load_robomimic(
                self.name, self.scene, self.path, self.demos,
                lambda file: robomimic.load_robomimic(
                    str(self.scene), file, mask=self.mask, actions=self.actions
                ),
            )  # fmt: skip
        elif self.family == "adroit_door":
            episodes, origin = sources.load_adroit_door(self.path)
        else:
            if self.family == "robosuite" and self.actions != "absolute":
                raise ConfigError(
                    f"{self.path} was recorded by a control loop, with goals as actions; leave "
                    "task.actions=delta out."
                )
            rate_hz = robomimic.RATE_HZ if self.family == "robosuite" else None
            episodes, origin = sources.load_recorded(self.name, self.path, rate_hz)
        return episodes, f"{self.name}: {len(episodes)} demonstrations {origin}."

    def split(self, episodes: Episodes, seed: int) -> tuple[Episodes, Episodes | None]:
        """Split at random into those to train on, with their mirror images, and those held out.

        Episodes too short for a window are left out before, with a warning.

        Raises:
            ConfigError: none would be left to train on.
            ValueError: all are too short.
        """
        indices = np.flatnonzero(long_enough(episodes.lengths, **self.horizons))
        count = self.validation_episodes
        if not 0 <= count < len(indices):
            raise ConfigError(
                f"task.validation_episodes={count} must leave some of the {len(indices)} "
                f"demonstrations that are long enough for a window of task.horizon={self.horizon} "
                "to train on."
            )
        order = np.random.default_rng(seed).permutation(indices)
        training = episodes.select(np.sort(order[count:]))
        held_out = episodes.select(np.sort(order[:count])) if count else None
        return (training + mirrored(training) if self.mirror else training), held_out

    def windows(self, episodes: Episodes, device: torch.device | str = "cpu") -> Windows:
        """Windows of episodes, of the horizons of this task."""
        arrays, cameras = episodes.arrays, self.cameras or []
        if cameras:
            from ebt_policy.data.render_cache import rendered_observations  # loads the simulator

            if "state" not in arrays:
                raise ConfigError(
                    f"the demonstrations of {self.name} have no states to draw frames from; leave "
                    "task.cameras out."
                )
            arrays = {**arrays, **rendered_observations(self.env_spec(), arrays["state"])}
        return Windows(arrays, episodes.ends, device=device, cameras=cameras, **self.horizons)

    def env_spec(self) -> EnvSpec:
        """Return its environment, with the horizons that its policies use.

        Raises:
            ConfigError: neither this package nor a module of the command line has it.
        """
        horizons = {k: v for k, v in self.horizons.items() if k != "horizon"}
        _check_known(self.env.get("env_id"))
        return options(EnvSpec, {**self.env, **horizons}, "task.env")


def _check_known(env_id: Any) -> None:
    """Refuse environments of modules that nobody asked for: making one would import its module,
    and a configuration may come with somebody else's checkpoint."""
    if env_id in registered_env_ids():
        return
    module, colon, _ = str(env_id).partition(":")
    if not colon:
        near = (
            get_close_matches(str(env_id), registered_env_ids(), cutoff=0.4)
            or registered_env_ids()[:1]
        )
        raise ConfigError(
            f"task.env.env_id={env_id} is unknown; near it are {', '.join(near)}. An environment "
            "of another package is module:id, with --module module on the command line."
        )
    if not is_user_module(module):
        raise ConfigError(
            f"task.env.env_id={env_id} belongs to the module {module}, which is not of this "
            f"package; to run its code, add --module {module} to the command."
        )
