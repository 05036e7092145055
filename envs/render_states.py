"""Observations of recorded states, as an environment with cameras renders them."""

from __future__ import annotations

import sys

import numpy as np
from rich.progress import track

from ebt_policy.envs.env_spec import EnvSpec


def render_states(spec: EnvSpec, states: np.ndarray) -> dict[str, np.ndarray]:
    """Render states (N, S).

    Returns:
        "obs" (N, Do), and under the name of each camera (N, H, W, 3) uint8.
    """
    env = spec.make()
    env.reset(seed=0)
    scene = env.unwrapped
    rows: dict[str, np.ndarray] = {}
    shown = track(states, "drawing frames", transient=True, disable=not sys.stdout.isatty())
    for i, state in enumerate(shown):
        for name, value in scene.observe(state).items():  # type: ignore[attr-defined]
            if i == 0:
                rows[name] = np.empty((len(states), *value.shape), dtype=value.dtype)
            rows[name][i] = value
    env.close()
    return rows
