"""Time steps of a denoising scheduler."""

from __future__ import annotations

from typing import Any


def set_num_steps(scheduler: Any, steps: int) -> None:
    """Set exactly N time steps of a scheduler with trailing spacing.

    If T / N is rounded down (100 levels, 29 steps), diffusers adds a step at level -1. It is
    removed here.
    """
    scheduler.set_timesteps(steps)
    scheduler.timesteps = scheduler.timesteps[:steps]
