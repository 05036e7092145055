"""Specification of a rollout: its environment and the horizons of the policy."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from ebt_policy.envs.errors import EnvError
from ebt_policy.envs.perturbations import Perturbation, PerturbationWrapper

# Importable package -> the extra of ebt_policy that installs it.
EXTRA_OF_PACKAGE = {
    "robosuite": "robomimic",
    "h5py": "robomimic",
    "metaworld": "metaworld",
    "gymnasium_robotics": "adroit",
    "mujoco": "robomimic,metaworld,adroit",
}
EVALUATION_SEED = 100_000  # first seed of evaluations; demonstrations use smaller seeds


@dataclass(frozen=True)
class EnvSpec:
    """An environment with its time limit, and the horizons of a policy.

    Attributes:
        env_id: gymnasium id; "module:id" imports `module` first.
        max_steps: time limit of an episode, in environment steps.
        n_obs_steps: To, number of observations that the policy sees (the newest last).
        n_action_steps: Ta, number of actions executed from each predicted chunk.
        kwargs: further arguments of `gymnasium.make`.
        perturbation: perturbation of every episode; None for undisturbed episodes.

    Raises:
        EnvError: a number of steps is below 1.
    """

    env_id: str
    max_steps: int
    n_obs_steps: int = 2
    n_action_steps: int = 8
    kwargs: dict[str, Any] = field(default_factory=dict)
    perturbation: Perturbation | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "n_obs_steps", "n_action_steps"):
            if getattr(self, name) < 1:
                raise EnvError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def make(self, render_mode: str | None = None) -> gymnasium.Env:
        """Build the environment with the time limit of this spec.

        Raises:
            EnvError: the environment is unknown, rejects its arguments or the perturbation, or
                needs a simulator that is not installed.
            RenderingError: the environment must render frames and no OpenGL backend works.
        """
        kwargs = {"max_episode_steps": self.max_steps, **self.kwargs}
        if render_mode is not None:  # An environment without rendering may not accept it.
            kwargs["render_mode"] = render_mode
        try:
            env = gymnasium.make(self.env_id, **kwargs)
        except EnvError:
            raise
        except (gymnasium.error.Error, TypeError, ValueError) as error:
            raise EnvError(
                f"task.env.env_id={self.env_id} cannot be created with "
                f"{self.kwargs or 'no arguments'} ({error}); check the section task.env."
            ) from error
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRA_OF_PACKAGE:
                raise
            raise EnvError(
                f"task.env.env_id={self.env_id} needs {package}, which is not installed: "
                f"pip install 'ebt_policy[{EXTRA_OF_PACKAGE[package]}]'."
            ) from error
        return env if self.perturbation is None else PerturbationWrapper(env, self.perturbation)

    @property
    def renders(self) -> bool:
        """Whether the environment declares the render mode "rgb_array", which videos need.

        It is true if this is unknown, for example because a simulator is not installed.
        """
        module, colon, name = self.env_id.partition(":")
        try:
            if colon:
                importlib.import_module(module)
            creator = gymnasium.spec(name or module).entry_point
            creator = load_env_creator(creator) if isinstance(creator, str) else creator
        except Exception:  # `make` explains what is wrong.
            return True
        metadata = getattr(creator, "metadata", None)
        return metadata is None or "rgb_array" in metadata.get("render_modes", ())

    def check(self, *, videos: bool) -> None:
        """Build and close the environment, so that errors of `make` appear before long work.

        Args:
            videos: whether videos will be recorded, if the environment `renders`.
        """
        self.make("rgb_array" if videos and self.renders else None).close()

    @staticmethod
    def stack_history(observations: Sequence[Any]) -> dict[str, np.ndarray]:
        """Stack To observations of an environment, the newest last.

        Returns:
            Name -> array (To, ...). An array observation becomes "obs", the low-dimensional part.
            A dictionary observation keeps its names: "obs" and the (H, W, 3) uint8 image of each
            camera.
        """
        named = [o if isinstance(o, dict) else {"obs": o} for o in observations]
        return {name: np.stack([o[name] for o in named]) for name in named[0]}

    def future_actions(self, chunk: np.ndarray) -> np.ndarray:
        """Return the part of a predicted chunk (T, A) that lies in the future, (T - To + 1, A).

        A chunk starts at the oldest of the To observations. Its action To - 1 directly follows the
        newest observation. The first Ta actions of the result are executed.

        Raises:
            EnvError: the chunk has fewer than Ta future actions.
        """
        min_actions = self.n_obs_steps - 1 + self.n_action_steps
        if len(chunk) < min_actions:
            raise EnvError(
                f"the policy predicts {len(chunk)} actions, but n_obs_steps={self.n_obs_steps} and "
                f"n_action_steps={self.n_action_steps} need at least {min_actions}; lower "
                "task.n_action_steps."
            )
        return chunk[self.n_obs_steps - 1 :]
