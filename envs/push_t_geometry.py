"""Geometry of Push-T without the simulator: keypoints, goal, observations, initial states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

WORKSPACE_SIZE = 512.0  # px, side length of the square workspace

# Keypoints of the T in its own frame, px, shape (9, 2). They were fitted to the keypoints in the
# human demonstrations (mean absolute difference below 0.05 px).
KEYPOINTS = np.array(
    [
        [9.26978651, 90.04097386],
        [-60.98347195, -1.18673018],
        [60.91275546, -1.39336347],
        [-0.27050367, 25.54362508],
        [-14.06492744, 122.81585387],
        [39.00273833, 32.85740441],
        [-39.9664144, 32.72965538],
        [-16.82434402, 62.86317907],
        [23.54146135, -1.70028786],
    ]
)

GOAL = np.array([256.0, 256.0, np.pi / 4])  # pose of the block at the goal: x, y (px), angle (rad)


@dataclass(frozen=True)
class Displacement:
    """A displacement of the agent or the block.

    Attributes:
        strength: length of a shift, px, or angle of a turn, degrees.
        angle: direction of a shift, rad.
        side: direction of a turn, 1 or -1.
    """

    strength: float
    angle: float
    side: float

    @property
    def shift(self) -> np.ndarray:
        """The displacement as a vector (2,), px."""
        return self.strength * np.array([np.cos(self.angle), np.sin(self.angle)])


def keypoints(state: np.ndarray) -> np.ndarray:
    """Return the positions (..., 9, 2), px, of the T's keypoints in states (..., 5).

    The position of a keypoint k of the T's own frame is R(block angle) k + block position.

    Raises:
        ValueError: the last dimension of the states is not 5.
    """
    state = np.asarray(state, dtype=np.float64)
    if state.ndim == 0 or state.shape[-1] != 5:
        raise ValueError(f"a Push-T state must have 5 numbers, got an array of shape {state.shape}")
    cos, sin = np.cos(state[..., 4, None]), np.sin(state[..., 4, None])
    x, y = KEYPOINTS.T
    rotated = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    return rotated + state[..., None, 2:4]


def observation(state: np.ndarray) -> np.ndarray:
    """Return the observations (..., 20), float32, px, of states (..., 5): keypoints, then agent."""
    points = keypoints(state)
    agent = np.asarray(state, dtype=np.float64)[..., :2]
    return np.concatenate([points.reshape(*points.shape[:-2], 18), agent], axis=-1).astype(
        np.float32
    )


def seeded_state(seed: int) -> np.ndarray:
    """Return the values from which Diffusion Policy starts episode `seed`, (5,) float64.

    Source: `PushTEnv.reset` of github.com/real-stanford/diffusion_policy. The environment then sets
    the position of the block before its angle (legacy order). The block turns about its centre of
    mass, so its final position differs from these values.

    Raises:
        ValueError: the seed is outside its range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"a Push-T seed must be between 0 and 2**32 - 1, got {seed}")
    rs = np.random.RandomState(seed)
    agent_and_block = [rs.randint(50, 450), rs.randint(50, 450)]
    agent_and_block += [rs.randint(100, 400), rs.randint(100, 400)]
    return np.array([*agent_and_block, rs.randn() * 2 * np.pi - np.pi])


def validate_state(values: Any) -> np.ndarray:
    """Return a state as an array (5,) float64, after checking its values.

    Raises:
        ValueError: the state has another length, is not finite or is outside the workspace.
    """
    state = np.asarray(values, dtype=np.float64)
    if state.shape != (5,) or not np.isfinite(state).all():
        raise ValueError(f"options['state'] must be five finite numbers, got {values}")
    if (state[:2] < 0).any() or (state[:2] > WORKSPACE_SIZE).any():
        raise ValueError(f"the agent must start inside [0, {WORKSPACE_SIZE:g}] px, got {state[:2]}")
    if (state[2:4] < 0).any() or (state[2:4] > WORKSPACE_SIZE).any():
        raise ValueError(
            f"the block must start inside [0, {WORKSPACE_SIZE:g}] px, got {state[2:4]}"
        )
    return state
