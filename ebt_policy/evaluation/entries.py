"""Entries of an evaluation: checkpoints, how each predicts, and which runs belong together.

An entry is what one ``checkpoint=RUN[@name=value,...]`` of the command line stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from omegaconf import OmegaConf
from yaml import YAMLError

from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.provenance import provenance
from ebt_policy.evaluation.tables import or_missing
from ebt_policy.models.base import CheckpointError, Domain, Model, stored_domain
from ebt_policy.models.pretrained import resolve_pretrained

M = TypeVar("M", bound=Model)


@dataclass
class EvalEntry(Generic[M]):
    """A model, trained once or with several seeds, and how it predicts.

    Attributes:
        name: of its row in tables; unique in an evaluation.
        runs: absolute paths of its training runs.
        models: one a training run, configured to predict as the entry says.
        first_of_runs: whether no entry before it has the same training runs. What does not depend
            on how a model predicts is measured for the first of them alone.
    """

    name: str
    runs: list[Path]
    models: list[M]
    first_of_runs: bool = True

    @property
    def model(self) -> M:
        """The model of the first training run."""
        return self.models[0]

    @classmethod
    def load(cls, text: str, model_class: type[M], device: torch.device) -> Self:
        """Load the training runs that ``RUN[@name=value,...]`` stands for.

        Args:
            text: a * in the last part of RUN stands for any characters.
            model_class: class of the models.

        Raises:
            CheckpointError: a run is missing, damaged or holds another class of model.
            ConfigError: no run matches, or the runs differ in more than their seed.
        """
        path, changes = parse_checkpoint(text)
        runs = matching_runs(path)
        if not runs:
            raise ConfigError(f"checkpoint={text}: no folder matches {path}.")
        models = [model_class.from_checkpoint(run, device) for run in runs]
        identities = {(m.name, m.parameter_count, str(m.config.get("task"))) for m in models}
        seeds = [model.config.get("seed") for model in models]
        if len(identities) > 1 or len(set(seeds)) < len(seeds):
            raise ConfigError(
                f"checkpoint={text} must match runs that differ in their seed alone; it matches "
                f"{', '.join(run.name for run in runs)}."
            )
        for model in models:
            model.configure_inference(**changes)
        name = cls.name_of(text, is_pattern=runs != [path])
        return cls(name, [run.resolve() for run in runs], models)

    @classmethod
    def name_of(cls, text: str, is_pattern: bool) -> str:
        """Return the name of ``RUN[@name=value,...]`` before it is made unique.

        Args:
            is_pattern: whether RUN is a pattern.
        """
        path, changes = parse_checkpoint(text)
        return path.resolve().name + (f"@{text.rpartition('@')[2]}" if changes else "")


Entry = TypeVar("Entry", bound=EvalEntry[Any])


def parse_checkpoint(text: str) -> tuple[Path, dict[str, Any]]:
    """Return the path and the changes of inference options in ``RUN[@name=value,name=value]``."""
    if Path(text).exists():  # an @ in a folder's name
        return Path(text), {}
    path, _, tail = text.rpartition("@") if "@" in text else (text, "", "")
    changes = list(filter(None, tail.split(",")))
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"checkpoint={text}: after @ write name=value, got {change!r}.")
    try:
        options = {str(k): v for k, v in OmegaConf.from_dotlist(changes).items()}
    except YAMLError as error:
        raise ConfigError(f"checkpoint={text}: after @ write name=value.") from error
    return resolve_pretrained(path), options


def matching_runs(path: Path) -> list[Path]:
    """Return the folders that match a pattern, by name; a path without a pattern as it is."""
    if has_magic(path.name) and not path.exists():
        return sorted(match for match in path.parent.glob(path.name) if match.is_dir())
    return [path]


def checkpoint_domain(text: str) -> Domain | None:
    """Return the domain of what ``checkpoint=...`` names, or None if nothing can be read."""
    for run in matching_runs(parse_checkpoint(text)[0])[:1]:
        try:
            return stored_domain(run)
        except CheckpointError:
            return None  # loading it says what is wrong
    return None


def load_entries(
    model_class: type[M], checkpoints: Sequence[str], device: torch.device
) -> list[EvalEntry[M]]:
    """Load each ``RUN[@name=value,...]``, with names that differ.

    Raises:
        CheckpointError, ConfigError: see `EvalEntry.load`, or an entry is listed twice.
    """
    return with_unique_names([EvalEntry.load(text, model_class, device) for text in checkpoints])


def with_unique_names(entries: list[Entry]) -> list[Entry]:
    """Return the entries with parent folders before equal names until no two are equal.

    Raises:
        ConfigError: two entries have the same name and runs.
    """
    listed = [(entry.name, entry.runs) for entry in entries]
    if repeated := [entry.name for entry in entries if listed.count((entry.name, entry.runs)) > 1]:
        raise ConfigError(f"{repeated[0]} is listed twice; name each checkpoint once.")
    for depth in range(2, 1 + max(len(entry.runs[0].parts) for entry in entries)):
        names = [entry.name for entry in entries]
        for entry in entries:
            path_parts = entry.runs[0].parts
            if names.count(entry.name) > 1 and depth <= len(path_parts):
                entry.name = f"{path_parts[-depth]}/{entry.name}"
    for i, entry in enumerate(entries):
        entry.first_of_runs = all(entry.runs != other.runs for other in entries[:i])
    return entries


def run_metadata(models: Sequence[Model]) -> dict[str, Any]:
    """Return how the models of an entry were trained; times and steps are means over the runs."""
    first = models[0]
    trained = [model.config.get("trained", {}) for model in models]
    seeds = [model.config.get("seed") for model in models]
    steps = [run["steps"] for run in trained if "steps" in run]
    seconds = [run["seconds"] for run in trained if "seconds" in run]
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


def entry_metadata(entry: EvalEntry[Any], command: str) -> dict[str, Any]:
    """Return what ``summary.json`` says of how an entry was trained and evaluated."""
    metadata = run_metadata(entry.models)
    return {"name": entry.name, **metadata, "command": command, **provenance()}


def metadata_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the same as (term, text), for the report."""
    objective = or_missing(summary["objective"])
    return [
        ("model", f"{summary['model']}, objective {objective}, {summary['steps']} steps"),
        (
            "training",
            f"{or_missing(summary['train_steps'])} updates, seed {summary['train_seed']}",
        ),
        *((key, or_missing(summary.get(key))) for key in ("device", "date", "version", "commit")),
        ("command", str(summary["command"])),
    ]
