"""Checkpoints that stay complete if the process is killed at any moment.

A checkpoint is a folder ``checkpoints/step_<n>``: the model's own files (see `Model.save`) and
``trainer_state.pt``. It is written under a temporary name, synced to disk and renamed.
"""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ebt_policy.errors import OutputError
from ebt_policy.io.atomic_write import atomic_folder
from ebt_policy.io.paths import reason
from ebt_policy.models.base import CheckpointError, Model


def save_checkpoint(run_dir: Path, step: int, model: Model, state: dict[str, Any]) -> Path:
    """Write a checkpoint, delete all but the newest two, and return its folder.

    Args:
        run_dir: folder of the run.
        step: number of updates so far.
        model: model with the weights for inference (the averaged weights).
        state: trainer state for resuming: tensors, numbers, strings and containers of them.

    Raises:
        OutputError: if it cannot be written, for example because the disk is full. The incomplete
            checkpoint is removed.
    """
    parent = run_dir / "checkpoints"
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(".writing_*"):
        shutil.rmtree(leftover)
    final = parent / f"step_{step:08d}"
    try:
        # If it exists, it is the same step, complete and equal, from before the process was killed.
        with atomic_folder(final) as temporary:
            model.save(temporary)
            torch.save(state, temporary / "trainer_state.pt")
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # a full disk, in three libraries
        raise OutputError(
            f"the checkpoint of step {step:,} cannot be written into {parent} ({reason(error)}); "
            f"{shutil.disk_usage(parent).free >> 20:,} MiB are free there. Free some space, then "
            "run the same command with resume=true to resume."
        ) from error
    for old in sorted(parent.glob("step_*"))[:-2]:
        # Rename first: a kill during the removal must not leave an incomplete checkpoint.
        trash = old.with_name(f".writing_{old.name}")
        os.rename(old, trash)
        shutil.rmtree(trash)
    return final


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None."""
    checkpoints = sorted((run_dir / "checkpoints").glob("step_*"))
    return checkpoints[-1] if checkpoints else None


def load_trainer_state(folder: Path) -> dict[str, Any]:
    """Load the trainer state of a checkpoint without unpickling code.

    Raises:
        CheckpointError: if it is missing, damaged, or holds more than tensors and numbers.
    """
    try:
        return torch.load(folder / "trainer_state.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reason = "it is damaged, or holds more than tensors and numbers"
    except (OSError, RuntimeError, EOFError) as error:
        reason = str(error)
    raise unusable(folder, reason)


def unusable(folder: Path, reason: str) -> CheckpointError:
    """Return the error for a trainer state from which training cannot resume."""
    return CheckpointError(
        f"{folder}/trainer_state.pt cannot be read ({' '.join(reason.split()).rstrip('.')}); "
        f"delete the folder {folder.name} to resume from the previous checkpoint."
    )
