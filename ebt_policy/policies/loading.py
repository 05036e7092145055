"""Loading of any policy, from a folder, the package or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import torch

from ebt_policy.errors import ConfigError
from ebt_policy.io import hub
from ebt_policy.policies.base import Policy


def load_policy(
    path: str | Path, device: torch.device | str = "cpu", *, revision: str | None = None
) -> Policy:
    """Load any policy.

    Args:
        path: a checkpoint or run folder, ``pretrained:NAME``, or ``hf://USER/NAME[@REVISION]``, a
            model on the Hugging Face Hub. With `revision`, ``USER/NAME`` is enough.
        device: device of the policy.
        revision: branch, tag or commit of a model on the Hub.

    Raises:
        CheckpointError, ConfigError, HubError: see `Policy.from_checkpoint`.
    """
    if revision is not None:
        name = str(path).removeprefix(hub.PREFIX)
        if not hub.is_repository_name(name):
            raise ConfigError(
                f"revision={revision} is for a model on the Hub, USER/NAME, but the path is {path}."
            )
        path = f"{hub.PREFIX}{name}@{revision}"
    return Policy.from_checkpoint(path, device)
