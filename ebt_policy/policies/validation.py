"""Checks of the arguments of `Policy.predict_chunk`.

Values are checked before the tensors move to the policy's device, because a check on a GPU makes
the host wait.
Shapes: B batch, T `horizon`, To `n_obs_steps`, Do observation and A action dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebt_policy.policies.policy_shape import PolicyShape


def validate_observation(
    obs: dict[str, Tensor], shape: PolicyShape, device: torch.device
) -> dict[str, Tensor]:
    """Return a copy of a valid observation on a device, "obs" as float32.

    Raises:
        ValueError: a key is missing, a shape or type is wrong, or "obs" has NaN or infinity.
    """
    if "obs" not in obs:
        raise ValueError(f'the observation must have the key "obs", got {sorted(obs)}.')
    state = obs["obs"]
    if state.ndim != 3 or tuple(state.shape[1:]) != (shape.n_obs_steps, shape.obs_dim):
        raise ValueError(
            f"the observation must be (B, {shape.n_obs_steps}, {shape.obs_dim}), "
            f"got {tuple(state.shape)}."
        )
    if not bool(state.isfinite().all()):
        raise ValueError("the observation contains NaN or Inf; check the sensor.")
    images = {
        name: _image(obs, name, (len(state), shape.n_obs_steps, *size, 3))
        for name, size in (shape.cameras or {}).items()
    }
    device_images = {name: image.to(device, non_blocking=True) for name, image in images.items()}
    return {**device_images, "obs": state.to(device, torch.float32, non_blocking=True, copy=True)}


def _image(obs: dict[str, Tensor], name: str, expected: tuple[int, ...]) -> Tensor:
    if name not in obs:
        raise ValueError(
            f'the observation must have the camera "{name}", which the policy was trained with; '
            f"it has {sorted(obs)}."
        )
    image = obs[name]
    if tuple(image.shape) != expected or image.dtype != torch.uint8:
        raise ValueError(
            f'the camera "{name}" must have images {expected} uint8, got {tuple(image.shape)} '
            f"{str(image.dtype).removeprefix('torch.')}."
        )
    return image


def validate_actions(
    actions: Tensor | None, name: str, shape: PolicyShape, *, batch: int, lengths: range,
    device: torch.device,
) -> Tensor | None:  # fmt: skip
    """Return a float32 copy of valid actions on a device, or None if ``actions`` is None.

    Args:
        actions: (B, n, A) in env units.
        name: name of the argument in messages.
        shape: dimensions of the policy.
        batch: B.
        lengths: allowed values of n.
        device: device of the copy.

    Raises:
        ValueError: the shape is wrong, or the actions contain NaN or infinity.
    """
    if actions is None:
        return None
    if actions.ndim != 3 or actions.shape[::2] != (batch, shape.action_dim):
        raise ValueError(
            f"the {name} must be ({batch}, P, {shape.action_dim}), got {tuple(actions.shape)}."
        )
    if actions.shape[1] not in lengths:
        raise ValueError(
            f"the {name} has {actions.shape[1]} actions, the horizon is {shape.horizon}."
        )
    if not bool(actions.isfinite().all()):
        raise ValueError(f"the {name} contains NaN or Inf; pass actions in env units.")
    return actions.to(device, torch.float32, non_blocking=True, copy=True)
