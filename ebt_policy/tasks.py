"""Tasks by name: their demonstrations and their environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from ebt_policy.data.episodes import Episodes
from ebt_policy.data.push_t import aligned, load_push_t, mirrored
from ebt_policy.data.windows import Windows
from ebt_policy.options import ConfigError, options
from envs.spec import EnvSpec

DEMONSTRATIONS = {"push_t": load_push_t, "push_t_image": load_push_t}


@dataclass(frozen=True)
class Task:
    """The section ``task`` of a configuration.

    Args:
        name: of the task, a key of `DEMONSTRATIONS`.
        demos, path: which demonstrations, as its loader understands them.
        horizon, n_obs_steps, n_action_steps: T, To, Ta.
        validation_episodes: demonstrations held out of training.
        env: ``env_id`` and ``max_steps`` of its environment (see `EnvSpec`).
        relative_to: entries of the newest observation that actions are relative to (see `Shape`).
        align: move each demonstration so that it ends exactly on the goal.
        mirror: learn from the mirror images of the demonstrations, too.
        cameras: names of those that the policy sees.
    """

    name: str
    demos: str | None
    path: str | None
    horizon: int
    n_obs_steps: int
    n_action_steps: int
    validation_episodes: int
    env: dict[str, Any]
    relative_to: list[int] | None = None
    align: bool = False
    mirror: bool = False
    cameras: list[str] | None = None

    def __post_init__(self) -> None:
        if self.name not in DEMONSTRATIONS:
            raise ConfigError(
                f"task={self.name} is unknown; there are {', '.join(DEMONSTRATIONS)}."
            )

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
        episodes, note = DEMONSTRATIONS[self.name](path=self.path, demos=self.demos)  # type: ignore[arg-type]
        return (aligned(episodes) if self.align else episodes), note

    def split(self, episodes: Episodes, seed: int) -> tuple[Episodes, Episodes | None]:
        """Split at random into those to train on, with their mirror images, and those held out.

        Raises:
            ConfigError: none would be left to train on.
        """
        count = self.validation_episodes
        if not 0 <= count < len(episodes):
            raise ConfigError(
                f"task.validation_episodes={count} must leave some of the {len(episodes)} "
                "demonstrations to train on."
            )
        order = np.random.default_rng(seed).permutation(len(episodes))
        training = episodes.select(np.sort(order[count:]))
        held_out = episodes.select(np.sort(order[:count])) if count else None
        return (training + mirrored(training) if self.mirror else training), held_out

    def windows(self, episodes: Episodes, device: torch.device | str = "cpu") -> Windows:
        """Windows of episodes, of the horizons of this task."""
        arrays, cameras = episodes.arrays, self.cameras or []
        if self.name == "push_t_image":
            from envs.push_t import seen  # loads the simulator

            arrays = {**arrays, **seen(arrays["state"])}
        return Windows(arrays, episodes.ends, device=device, cameras=cameras, **self.horizons)

    def env_spec(self) -> EnvSpec:
        """Its environment, with the horizons that its policies use."""
        horizons = {k: v for k, v in self.horizons.items() if k != "horizon"}
        return options(EnvSpec, {**self.env, **horizons}, "task.env")
