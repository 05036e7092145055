"""Experiment trackers in addition to ``log.jsonl``: TensorBoard, Weights & Biases or Trackio.

The trackers are those of accelerate. Each reads its own environment variables, such as
``WANDB_MODE=offline`` or ``TRACKIO_DIR``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ebt_policy.errors import ConfigError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

OFF = "off"
TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "ebt_policy"
ID_FILE = "tracker_id"  # in the run folder
EARLIER_ID_FILE = "wandb_id"  # of earlier versions


def check_tracker(name: str) -> None:
    """Check the option ``tracker``.

    Raises:
        ConfigError: the name is unknown, or the package is missing.
    """
    if name not in (OFF, *TRACKERS):
        raise ConfigError(f"tracker must be one of {', '.join((OFF, *TRACKERS))}, got {name}.")
    if name != OFF and find_spec(name) is None:
        raise ConfigError(f"tracker={name} needs the package {name}: pip install {name}.")


def start_tracker(
    name: str, run_dir: Path, config: Mapping[str, Any], resume_step: int | None
) -> GeneralTracker:
    """Start a tracker of a run. TensorBoard writes into ``run_dir/tensorboard``.

    Args:
        name: one of `TRACKERS`.
        run_dir: folder of the run.
        config: configuration that is stored with the run.
        resume_step: step from which the run resumes, or None for a new run.

    Raises:
        ConfigError: the tracker does not work.
    """
    from accelerate import tracking  # slow to import

    run_id = _run_id(run_dir, is_new=resume_step is None)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    try:
        if name == "tensorboard":
            purge_step = None if resume_step is None else resume_step + 1
            tracker: GeneralTracker = tracking.TensorBoardTracker(
                name, run_dir, purge_step=purge_step
            )
        elif name == "wandb":
            tracker = tracking.WandBTracker(
                project, dir=run_dir, name=run_dir.name, id=run_id, resume="allow", config=config
            )
        else:
            tracker = tracking.TrackioTracker(
                PROJECT, name=f"{run_dir.name}-{run_id}", resume="allow", config=config
            )
        tracker.start()
        if name == "tensorboard" and resume_step is None:
            tracker.store_init_configuration(_flat(config))
    except Exception as error:  # The packages raise many kinds.
        cause = str(error).strip() or type(error).__name__
        raise ConfigError(f"tracker={name} does not work ({cause}); or use tracker=off.") from error
    return tracker


def _run_id(run_dir: Path, *, is_new: bool) -> str:
    """Return the id of a run; a new run gets a new one, even if its folder has the same name."""
    file, earlier = run_dir / ID_FILE, run_dir / EARLIER_ID_FILE
    if not is_new and not file.is_file() and earlier.is_file():
        return earlier.read_text()
    if is_new or not file.is_file():
        file.write_text(uuid4().hex[:12])
    return file.read_text()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options as ``section.option``, with values that TensorBoard stores.

    >>> _flat({"task": {"name": "push_t", "episodes": None}, "seed": 0})
    {'task.name': 'push_t', 'task.episodes': 'None', 'seed': 0}
    """
    options: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            options |= _flat(value, f"{prefix}{name}.")
        else:
            is_plain = isinstance(value, bool | int | float | str)
            options[f"{prefix}{name}"] = value if is_plain else str(value)
    return options
