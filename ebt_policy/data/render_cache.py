"""What an environment with cameras shows in recorded states.

Demonstrations are drawn, not read: so those without frames have them, too, they can be moved and
mirrored first, and they look as the environment of the evaluation does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.render_states import render_states
from ebt_policy.io.atomic_write import atomic_path
from ebt_policy.io.download import cache_dir

RENDER_VERSION = (
    2  # to be raised when environments draw differently: frames that are kept are old then
)


def rendered_observations(spec: EnvSpec, states: np.ndarray) -> dict[str, np.ndarray]:
    """Observations of states (N, S): "obs" (N, Do) and under each camera's name (N, H, W, 3) uint8.

    Drawn once and kept in the cache folder, as drawing may take minutes.
    """
    digest = hashlib.sha256(np.ascontiguousarray(states).tobytes())
    digest.update(repr((RENDER_VERSION, spec.env_id, sorted(spec.kwargs.items()))).encode())
    file = cache_dir() / "frames" / f"{digest.hexdigest()[:32]}.npz"
    try:
        with np.load(file) as stored:
            return dict(stored)
    except Exception:  # none yet, or a damaged one, for which NumPy's errors share no base
        frames = render_states(spec, states)
        _store(file, frames)
        return frames


def _store(file: Path, frames: dict[str, np.ndarray]) -> None:
    """Frames of simulators are mostly flat, so compression makes them many times smaller."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        np.savez_compressed(temporary, **frames)  # type: ignore[arg-type]
