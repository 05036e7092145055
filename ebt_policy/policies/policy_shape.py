"""The dimensions of a policy, which depend on its task."""

from __future__ import annotations

from dataclasses import dataclass

from ebt_policy.errors import ConfigError


@dataclass(frozen=True)
class PolicyShape:
    """Dimensions of a policy (names as in Diffusion Policy).

    Args:
        obs_dim, action_dim: Do and A, the dimensions of an observation and an action.
        horizon, n_obs_steps, n_action_steps: T actions of a chunk, To observations that a
            prediction reads, Ta actions that are executed.
        relative_to: for each action dimension, the index of the observation entry that it is
            relative to, such as the robot's position. Values of the newest observation are used.
            None keeps a dimension absolute; None instead of the list keeps all of them absolute.
        cameras: name -> [H, W] of each camera; None for no cameras.
        max_prefix_len: largest number of committed actions that the network is conditioned on;
            0 for a network without this input.

    Raises:
        ConfigError: ``max_prefix_len`` is not below the horizon.
    """

    obs_dim: int
    action_dim: int
    horizon: int
    n_obs_steps: int
    n_action_steps: int
    relative_to: list[int | None] | None = None
    cameras: dict[str, list[int]] | None = None
    max_prefix_len: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_prefix_len < self.horizon:
            raise ConfigError(
                f"task.max_prefix_len={self.max_prefix_len} must be at least 0 and less than "
                f"task.horizon={self.horizon}."
            )
