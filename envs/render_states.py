"""Rendering of recorded states in an environment with cameras."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ebt_policy.envs.env_spec import EnvSpec


def render_states(
    spec: EnvSpec, states: np.ndarray, on_progress: Callable[[int], None] = lambda count: None
) -> dict[str, np.ndarray]:
    """Restore each state and return the observations of all states.

    Args:
        spec: the environment. Its observations must be dictionaries.
        states: (N, S), as in ``info["state"]``.
        on_progress: called after each state with the number of states rendered so far.

    Returns:
        "obs" (N, Do), and for each camera its frames (N, H, W, 3) uint8.
    """
    env = spec.make()
    env.reset(seed=0)
    scene = env.unwrapped
    rows: dict[str, np.ndarray] = {}
    for i, state in enumerate(states):
        for name, value in scene.observe(state).items():  # type: ignore[attr-defined]
            if i == 0:
                rows[name] = np.empty((len(states), *value.shape), dtype=value.dtype)
            rows[name][i] = value
        on_progress(i + 1)
    env.close()
    return rows
