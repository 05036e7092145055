"""Camera frames of recorded states, rendered by an environment.

Frames of demonstrations are rendered, not read from recordings. So demonstrations need no frames,
can be shifted and mirrored before, and look like the frames in an evaluation.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.render_states import render_states
from ebt_policy.io.atomic_write import atomic_path
from ebt_policy.io.download import cache_dir
from ebt_policy.io.progress import ReportedProgress

RENDER_VERSION = 2  # increase it when rendering changes, to discard cached frames


def rendered_observations(spec: EnvSpec, states: np.ndarray) -> dict[str, np.ndarray]:
    """Return observations of states, which are rendered once and then read from a cache.

    Args:
        spec: an environment with cameras.
        states: (N, S) states of the environment.

    Returns:
        "obs" (N, Do), and the frames (N, H, W, 3) uint8 of each camera under its name.
    """
    digest = hashlib.sha256(np.ascontiguousarray(states).tobytes())
    digest.update(repr((RENDER_VERSION, spec.env_id, sorted(spec.kwargs.items()))).encode())
    file = cache_dir() / "frames" / f"{digest.hexdigest()[:32]}.npz"
    try:
        with np.load(file) as stored:
            return dict(stored)
    except Exception:  # no file, or a damaged one: NumPy's errors share no base class
        frames = _render(spec, states)
        _store(file, frames)
        return frames


def _render(spec: EnvSpec, states: np.ndarray) -> dict[str, np.ndarray]:
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ReportedProgress(*columns) as progress:
        task = progress.add_task("rendering frames", total=len(states))
        return render_states(spec, states, lambda count: progress.update(task, completed=count))


def _store(file: Path, frames: dict[str, np.ndarray]) -> None:
    # Frames of simulators are mostly flat, so compression makes them many times smaller.
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        np.savez_compressed(temporary, **frames)  # type: ignore[arg-type]
