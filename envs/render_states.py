"""Rendering of recorded states by an environment with cameras."""

from __future__ import annotations

import sys

import numpy as np
from rich.progress import track

from ebt_policy.envs.env_spec import EnvSpec


def render_states(spec: EnvSpec, states: np.ndarray) -> dict[str, np.ndarray]:
    """Return the observations of states (N, S), with a progress bar in a terminal.

    Returns:
        "obs" (N, Do), and under the name of each camera (N, H, W, 3) uint8.
    """
    env = spec.make()
    env.reset(seed=0)
    scene = env.unwrapped
    rows: dict[str, np.ndarray] = {}
    progress = track(states, "drawing frames", transient=True, disable=not sys.stdout.isatty())
    for i, state in enumerate(progress):
        for name, value in scene.observe(state).items():  # type: ignore[attr-defined]
            if i == 0:
                rows[name] = np.empty((len(states), *value.shape), dtype=value.dtype)
            rows[name][i] = value
    env.close()
    return rows
