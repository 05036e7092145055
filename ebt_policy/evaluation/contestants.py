"""What is evaluated: checkpoints, how each is to predict, and which belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.models.base import Domain, Model, checkpoint_folder, domain_of
from ebt_policy.policies import Policy, load_policy
from ebt_policy.policies.task_config import PolicyTaskConfig

M = TypeVar("M", bound=Model)


@dataclass
class EvalEntry:
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
    def task_name(self) -> str:
        """Return the name of its task."""
        return self.policy.config["task"]["name"]

    @property
    def env_spec(self) -> EnvSpec:
        """Where it plays, and how far it sees and acts."""
        return PolicyTaskConfig.of(self.policy.config).env_spec()

    def info(self) -> dict[str, Any]:
        """What a summary says of it (see `summary.POLICY_KEYS`); means over the runs."""
        return {**made(self.policies), "demos": self.policy.config.get("demos")}


def made(models: Sequence[Model]) -> dict[str, Any]:
    """What the training runs of an entry are; times and steps are means over them."""
    first = models[0]
    trained = [model.config.get("trained", {}) for model in models]
    seeds = [model.config.get("seed") for model in models]
    steps = [one["steps"] for one in trained if "steps" in one]
    seconds = [one["seconds"] for one in trained if "seconds" in one]
    return {
        "task": first.config["task"]["name"],
        "model": first.name,
        "params": first.parameter_count,
        "objective": (first.config.get("objective") or {}).get("name"),
        "steps": getattr(first.inference, "steps", 1),
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


def checkpoint_domain(text: str) -> Domain | None:
    """Return the domain of what ``checkpoint=...`` names, or None if nothing can be read."""
    for run in matching_runs(parse_checkpoint(text)[0])[:1]:
        try:
            config: Any = OmegaConf.load(checkpoint_folder(run) / "config.yaml")
            return domain_of(config)
        except (OSError, ValueError, LookupError, YAMLError, OmegaConfBaseException):
            return None  # loading it says what is wrong
    return None


def load_contestants(checkpoints: list[str], device: torch.device) -> list[EvalEntry]:
    """Load what several ``checkpoint=...`` name, with names that differ.

    Raises:
        CheckpointError, ConfigError: something is missing, damaged or listed twice.
    """
    contestants = []
    for text in checkpoints:
        path, changes = parse_checkpoint(text)
        runs, policies = load_runs(text, partial(load_policy, device=device))
        name = path.resolve().name
        if runs != [path]:  # training runs of one policy
            name = path.name.replace("-seed*", "").replace("*", "")
        words = [
            f"{v}" if k == "scheduler" else f"{k.removeprefix('num_')} {v}"
            for k, v in changes.items()
        ]
        name += f" ({', '.join(words)})" if words else ""
        contestants.append(EvalEntry(name, [run.resolve() for run in runs], policies))
    names = unique_names([(one.name, one.runs) for one in contestants])
    for one, name in zip(contestants, names, strict=True):
        one.name = name
    return contestants


def load_runs(text: str, load: Callable[[Path], M]) -> tuple[list[Path], list[M]]:
    """The training runs that one ``checkpoint=...`` stands for, and their models, which predict as
    it says.

    Raises:
        CheckpointError, ConfigError: there are none, or they differ in more than their seed.
    """
    path, changes = parse_checkpoint(text)
    runs = matching_runs(path)
    if not runs:
        raise ConfigError(f"checkpoint={text}: no folder matches {path}.")
    models = [load(run) for run in runs]
    kinds = {(m.name, m.parameter_count, str(m.config.get("task"))) for m in models}
    seeds = [model.config.get("seed") for model in models]
    if len(kinds) > 1 or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"checkpoint={text} must match runs that differ in their seed alone; it matches "
            f"{', '.join(run.name for run in runs)}."
        )
    for model in models:
        model.configure_inference(**changes)
    return runs, models


def check_envs(contestants: Sequence[EvalEntry], *, videos: bool) -> None:
    """Raise now what would stop the evaluation later (see `EnvSpec.check`), each world once."""
    checked: list[EnvSpec] = []
    for spec in (one.env_spec for one in contestants):
        if spec not in checked:
            spec.check(videos=videos)
            checked.append(spec)


def share_env(contestants: Sequence[EvalEntry]) -> bool:
    """Whether all play the same environment with the same time limit."""
    # How far a policy sees and acts is its own; the world is not.
    specs = [replace(one.env_spec, n_obs_steps=1, n_action_steps=1) for one in contestants]
    return all(spec == specs[0] for spec in specs)


def unique_names(entries: Sequence[tuple[str, list[Path]]]) -> list[str]:
    """Names of entries, given them with their runs (absolute paths), with parent folders before
    equal ones until no two are equal.

    Raises:
        ConfigError: two are the same.
    """
    if repeated := [name for name, runs in entries if entries.count((name, runs)) > 1]:
        raise ConfigError(f"{repeated[0]} is listed twice; name each checkpoint once.")
    names = [name for name, _ in entries]
    for depth in range(2, 1 + max(len(runs[0].parts) for _, runs in entries)):
        seen = list(names)
        for i, (_, runs) in enumerate(entries):
            if seen.count(names[i]) > 1 and depth <= len(runs[0].parts):
                names[i] = f"{runs[0].parts[-depth]}/{names[i]}"
    return names
