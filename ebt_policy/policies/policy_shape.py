"""The dimensions that tie a policy to its task."""

from __future__ import annotations

from dataclasses import dataclass

from ebt_policy.errors import ConfigError


@dataclass(frozen=True)
class PolicyShape:
    """Dimensions of a policy (names as in Diffusion Policy).

    Args:
        obs_dim, action_dim, horizon, n_obs_steps, n_action_steps: Do, A, T, To, Ta.
        relative_to: A entries of the newest observation. The actions of a chunk are measured from
            them (the position of the robot, if actions are positions). An entry is None for a
            number that stays absolute; None instead of a list makes all actions absolute.
        cameras: name -> [H, W] of each camera.
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
