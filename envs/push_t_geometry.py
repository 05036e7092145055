"""Geometry of Push-T: the T's keypoints, the goal, and the observation of a state"""

from __future__ import annotations

import numpy as np

# Keypoints of the T in its own frame, px, shape (9, 2): fitted to the human demonstrations'
# recorded keypoints (mean absolute difference below 0.05 px).
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


GOAL = np.array([256.0, 256.0, np.pi / 4])  # where the block is to be: x, y (px), angle (rad)


def keypoints(state: np.ndarray) -> np.ndarray:
    """Scene positions (..., 9, 2), px, of the T's keypoints: R(angle) local + block position."""
    state = np.asarray(state, dtype=np.float64)
    if state.ndim == 0 or state.shape[-1] != 5:
        raise ValueError(f"A Push-T state has 5 numbers, got an array of shape {state.shape}.")
    cos, sin = np.cos(state[..., 4, None]), np.sin(state[..., 4, None])
    x, y = KEYPOINTS.T
    rotated = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    return rotated + state[..., None, 2:4]


def observation(state: np.ndarray) -> np.ndarray:
    """Observation (..., 20), float32, px, of state (..., 5): keypoints flattened, then agent."""
    points = keypoints(state)
    agent = np.asarray(state, dtype=np.float64)[..., :2]
    return np.concatenate([points.reshape(*points.shape[:-2], 18), agent], axis=-1).astype(
        np.float32
    )
