"""Entries of a policy evaluation, and their environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import (
    FILE_SUFFIX,
    EvalEntry,
    base_name,
    parse_checkpoint,
    run_metadata,
    with_unique_names,
)
from ebt_policy.policies.base import Policy
from ebt_policy.policies.robomimic_checkpoint import RobomimicPolicy
from ebt_policy.policies.task_config import PolicyTaskConfig


class PolicyEntry(EvalEntry[Policy]):
    """A policy, trained once or with several seeds, and its inference options."""

    @property
    def task_name(self) -> str:
        """Name of the policy's task."""
        return self.model.config["task"]["name"]

    @property
    def has_env(self) -> bool:
        """Whether the policy's task has an environment."""
        return self.model.config["task"].get("env") is not None

    @property
    def env_spec(self) -> EnvSpec:
        """Environment of the task, with the policy's horizons."""
        return PolicyTaskConfig.from_config(self.model.config).env_spec()

    def metadata(self) -> dict[str, Any]:
        """Return its metadata for a summary (see `metrics.POLICY_KEYS` and `run_metadata`)."""
        return {**run_metadata(self.models), "demos": self.model.config.get("demos")}

    @classmethod
    def name_of(cls, text: str, is_pattern: bool) -> str:
        """Return the name of ``RUN@steps=2``, not yet unique: ``RUN (steps 2)``."""
        path, changes = parse_checkpoint(text)
        name = base_name(text)
        if is_pattern:
            name = path.name.replace("-seed*", "").replace("*", "")
        words = [
            f"{v}" if k == "scheduler" else f"{k.removeprefix('num_')} {v}"
            for k, v in changes.items()
        ]
        return name + (f" ({', '.join(words)})" if words else "")


def load_policy_entries(
    checkpoints: Sequence[str], device: torch.device, *, allow_pickle: bool = False
) -> list[PolicyEntry]:
    """Load an entry for each ``RUN[@name=value,...]``, with unique names.

    Args:
        allow_pickle: whether the user trusts checkpoints of robomimic, ``FILE.pth``.

    Raises:
        CheckpointError, ConfigError: see `EvalEntry.load`, or an entry is listed twice.
    """

    def load(run: Path) -> Any:
        if run.suffix == FILE_SUFFIX:
            return RobomimicPolicy(run, allow_pickle=allow_pickle)
        return Policy.from_checkpoint(run, device)

    return with_unique_names([PolicyEntry.load(text, load) for text in checkpoints])


def load_single_entry(checkpoint: str, device: torch.device) -> PolicyEntry:
    """Load one policy.

    Raises:
        CheckpointError, ConfigError: see `load_policy_entries`, or several runs match.
    """
    if Path(checkpoint).suffix == FILE_SUFFIX:
        raise ConfigError(f"{checkpoint} is a checkpoint of robomimic, which only ebt-eval reads.")
    entry = load_policy_entries([checkpoint], device)[0]
    if len(entry.models) > 1:
        raise ConfigError(f"checkpoint={checkpoint} matches several runs; name one of them.")
    return entry


def check_envs(entries: Sequence[PolicyEntry], *, videos: bool) -> None:
    """Check the environments now, to raise errors before the evaluation (see `EnvSpec.check`).

    Args:
        videos: whether videos will be recorded.
    """
    checked: list[EnvSpec] = []
    for spec in (entry.env_spec for entry in entries):
        if spec not in checked:
            spec.check(videos=videos)
            checked.append(spec)


def share_env(entries: Sequence[PolicyEntry]) -> bool:
    """Return whether all entries have the same environment with the same time limit."""
    # The horizons belong to a policy, not to the environment.
    specs = [replace(entry.env_spec, n_obs_steps=1, n_action_steps=1) for entry in entries]
    return all(spec == specs[0] for spec in specs)
