"""Committed actions as an input of the network.

A network that was trained without this input rarely predicts chunks that continue the committed
actions, whatever the descent does (docs/experiments.md).
Shapes: B batch, T horizon, To `n_obs_steps`, P `max_prefix_len`, n actions, A action dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebt_policy.policies.policy_shape import PolicyShape

# Standard deviation of the noise on committed actions in training, in network units. From exact
# actions, a policy learns how the demonstration continues and ignores the observation
# (docs/experiments.md).
PREFIX_NOISE_STD = 0.1


def sample_prefix(actions: Tensor, max_length: int) -> dict[str, Tensor]:
    """Sample the numbers of committed actions, and the noise on these actions.

    About half of the numbers are 0, because a robot that starts to move has no committed actions.

    Args:
        actions: (B, T, A) in network units.
        max_length: P, at least 1.

    Returns:
        "prefix_length" (B,), from 0 to P, and "prefix_noise" (B, P, A).
    """
    length = torch.randint(-max_length, max_length + 1, (len(actions),), device=actions.device)
    noise = PREFIX_NOISE_STD * torch.randn_like(actions[:, :max_length])
    return {"prefix_length": length.clamp(min=0), "prefix_noise": noise}


def encode_prefix(
    obs: Tensor, shape: PolicyShape, actions: Tensor | None, length: Tensor | None
) -> Tensor:
    """Encode committed actions as features of every observation step.

    Args:
        obs: (B, To, Do); only its batch size, device and data type are used.
        shape: dimensions of the policy.
        actions: (B, n, A) in network units; None if no action is committed.
        length: (B,), number of committed actions in each row; None if all n are committed.

    Returns:
        (B, To, P * (A + 1)). A committed action has its A values and a 1; the others have zeros.
    """
    encoded = obs.new_zeros(len(obs), shape.max_prefix_len, shape.action_dim + 1)
    if actions is not None:
        actions = actions[:, : shape.max_prefix_len]
        flagged = torch.cat([actions, torch.ones_like(actions[..., :1])], dim=-1)
        if length is not None:
            is_committed = torch.arange(flagged.shape[1], device=obs.device) < length.unsqueeze(1)
            flagged = flagged * is_committed.unsqueeze(-1)
        encoded = torch.cat([flagged, encoded[:, flagged.shape[1] :]], dim=1)
    return encoded.flatten(1).unsqueeze(1).expand(-1, shape.n_obs_steps, -1)
