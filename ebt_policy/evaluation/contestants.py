"""What is evaluated: checkpoints, how each is to predict, and which belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ebt_policy.models import Policy, load_policy
from ebt_policy.models.base import CheckpointError, checkpoint_folder
from ebt_policy.options import ConfigError
from ebt_policy.tasks import Task
from envs.spec import EnvSpec


@dataclass
class Contestant:
    """A policy, trained once or with several seeds, and how it is to predict.

    Attributes:
        name: in tables.
        runs, policies: one a training run.
    """

    name: str
    runs: list[Path]
    policies: list[Policy]

    @property
    def policy(self) -> Policy:
        """The first run's."""
        return self.policies[0]

    @property
    def env_spec(self) -> EnvSpec:
        """Where it plays, and how far it sees and acts."""
        return Task.of(self.policy.config).env_spec()

    def info(self) -> dict[str, Any]:
        """What a summary says of it (see `summary.POLICY_KEYS`); means over the runs."""
        config = self.policy.config
        trained = [policy.config.get("trained", {}) for policy in self.policies]
        seeds = [policy.config.get("seed") for policy in self.policies]
        steps = [one["steps"] for one in trained if "steps" in one]
        seconds = [one["seconds"] for one in trained if "seconds" in one]
        return {
            "task": config["task"]["name"],
            "model": self.policy.name,
            "params": self.policy.parameter_count,
            "objective": (config.get("objective") or {}).get("name"),
            "steps": getattr(self.policy.inference, "steps", 1),
            "demos": config.get("demos"),
            "train_seed": seeds[0] if len(seeds) == 1 else seeds,
            "train_steps": round(sum(steps) / len(steps)) if steps else None,
            "train_seconds": round(sum(seconds) / len(seconds), 1) if seconds else None,
            "device": trained[0].get("device"),
        }


def parse_checkpoint(text: str) -> tuple[Path, dict[str, Any]]:
    """``RUN`` or ``RUN@name=value,name=value`` -> path and changes of its inference options."""
    if Path(text).exists():  # an @ in a folder's name
        return Path(text), {}
    path, _, tail = text.rpartition("@") if "@" in text else (text, "", "")
    changes = list(filter(None, tail.split(",")))
    for part in changes:
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"checkpoint={text}: after @ write name=value, got {part!r}.")
    try:
        return Path(path), {str(k): v for k, v in OmegaConf.from_dotlist(changes).items()}
    except YAMLError as error:
        raise ConfigError(f"checkpoint={text}: after @ write name=value.") from error


def matching_runs(path: Path) -> list[Path]:
    """The path itself, or with a pattern as its last part the folders that match, by name."""
    if has_magic(path.name) and not path.exists():
        return sorted(found for found in path.parent.glob(path.name) if found.is_dir())
    return [path]


def kind_of(text: str) -> str:
    """The name of the task that ``checkpoint=...`` was trained for; "" where none can be read."""
    for run in matching_runs(parse_checkpoint(text)[0])[:1]:
        try:
            config: Any = OmegaConf.load(checkpoint_folder(run) / "config.yaml")
            return str(config.task.name)
        except (CheckpointError, OSError, YAMLError, OmegaConfBaseException):
            return ""  # whoever loads it says what is wrong
    return ""


def load_contestants(checkpoints: list[str], device: torch.device) -> list[Contestant]:
    """Load what several ``checkpoint=...`` name, with names that differ.

    Raises:
        CheckpointError, ConfigError: something is missing, damaged or listed twice.
    """
    contestants = [_load(text, device) for text in checkpoints]
    _tell_apart(contestants)
    return contestants


def _load(text: str, device: torch.device) -> Contestant:
    path, changes = parse_checkpoint(text)
    runs, name = matching_runs(path), path.resolve().name
    if not runs:
        raise ConfigError(f"checkpoint={text}: no folder matches {path}.")
    if runs != [path]:  # training runs of one policy
        name = path.name.replace("-seed*", "").replace("*", "")
    policies = [load_policy(run, device) for run in runs]
    for policy in policies:
        policy.configure_inference(**changes)
    kinds = {(p.name, p.parameter_count, str(p.config["task"])) for p in policies}
    seeds = [policy.config.get("seed") for policy in policies]
    if len(kinds) > 1 or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"checkpoint={text} must match runs that differ in their seed alone; it matches "
            f"{', '.join(run.name for run in runs)}."
        )
    words = [f"{v}" if k == "scheduler" else f"{k} {v}" for k, v in changes.items()]
    name += f" ({', '.join(words)})" if words else ""
    return Contestant(name, [run.resolve() for run in runs], policies)


def check_worlds(contestants: Sequence[Contestant], *, videos: bool) -> None:
    """Raise now what would stop the evaluation later (see `EnvSpec.check`), each world once."""
    checked: list[EnvSpec] = []
    for spec in (one.env_spec for one in contestants):
        if spec not in checked:
            spec.check(videos=videos)
            checked.append(spec)


def share_a_world(contestants: Sequence[Contestant]) -> bool:
    """Whether all play the same environment with the same time limit."""
    # How far a policy sees and acts is its own; the world is not.
    specs = [replace(one.env_spec, n_obs_steps=1, n_action_steps=1) for one in contestants]
    return all(spec == specs[0] for spec in specs)


def _tell_apart(contestants: list[Contestant]) -> None:
    """Put parent folders before equal names until no two are equal."""
    seen = [(one.runs, one.name) for one in contestants]
    if repeated := [name for runs, name in seen if seen.count((runs, name)) > 1]:
        raise ConfigError(f"{repeated[0]} is listed twice; name each checkpoint once.")
    for depth in range(2, 1 + max(len(one.runs[0].parts) for one in contestants)):
        names = [one.name for one in contestants]
        for one in contestants:
            if names.count(one.name) > 1 and depth <= len(one.runs[0].parts):
                one.name = f"{one.runs[0].parts[-depth]}/{one.name}"
