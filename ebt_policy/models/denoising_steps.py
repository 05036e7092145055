"""Time steps of a denoising scheduler."""

from __future__ import annotations

from typing import Any


def set_num_steps(scheduler: Any, steps: int) -> None:
    """Set N trailing time steps of a scheduler, and never one too many.

    If T / N is rounded down (100 levels, 29 steps), diffusers adds a step from level -1.
    """
    scheduler.set_timesteps(steps)
    scheduler.timesteps = scheduler.timesteps[:steps]
