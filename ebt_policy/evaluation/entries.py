"""Entries of an evaluation: models with their inference options and their training runs.

Each ``checkpoint=RUN[@name=value,...]`` on the command line is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from omegaconf import OmegaConf
from yaml import YAMLError

from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.provenance import provenance
from ebt_policy.evaluation.tables import or_missing
from ebt_policy.io import hub
from ebt_policy.models.base import CheckpointError, Domain, Model, stored_domain
from ebt_policy.models.checkpoint_source import PREFIX, local_checkpoint

M = TypeVar("M", bound=Model)
FILE_SUFFIX = ".pth"  # Checkpoints of robomimic are files, not folders.


@dataclass
class EvalEntry(Generic[M]):
    """A model, trained once or with several seeds, and its inference options.

    Attributes:
        name: name of its row in tables; unique in an evaluation.
        runs: absolute paths of its training runs.
        models: one model for each training run, with the inference options of the entry.
        first_of_runs: whether no earlier entry has the same training runs. Metrics that do not
            depend on inference options are measured only for the first of such entries.
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
    def load(cls, text: str, load_model: Callable[[Path], M]) -> Self:
        """Load the training runs of ``RUN[@name=value,...]``.

        Args:
            text: the checkpoint argument; a ``*`` in the last part of RUN matches any characters.
            load_model: loads the model of a run.

        Raises:
            CheckpointError: a run is missing or damaged, or has another class of model.
            ConfigError: no run matches, or the runs differ in more than ``seed``,
                ``task.episodes`` and, if they have an environment, ``task.path``.
        """
        path, changes = parse_checkpoint(text)
        runs = matching_runs(path)
        if not runs:
            raise ConfigError(f"checkpoint={text}: no folder matches {path}.")
        models = [load_model(run) for run in runs]
        names = ", ".join(run.name for run in runs)
        if differences := _differences(models):
            raise ConfigError(
                f"checkpoint={text} must match runs that differ in their seed alone, or also in "
                f"their demonstrations; {names} differ in {', '.join(differences)}."
            )
        seeds = [model.config.get("seed") for model in models]
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"checkpoint={text} matches several runs of one seed: {names}.")
        for model in models:
            model.configure_inference(**changes)
        name = cls.name_of(text, is_pattern=runs != [path])
        return cls(name, [run.resolve() for run in runs], models)

    @classmethod
    def name_of(cls, text: str, is_pattern: bool) -> str:
        """Return the name, not yet unique, of ``RUN[@name=value,...]``.

        Args:
            text: the checkpoint argument.
            is_pattern: whether RUN is a pattern with a ``*``.
        """
        _, changes = _split_options(text)
        return base_name(text) + (f"@{changes}" if changes else "")


Entry = TypeVar("Entry", bound=EvalEntry[Any])


def _differences(models: Sequence[Model]) -> list[str]:
    """Return what differs between models, except their seeds and their demonstrations.

    Without an environment, the demonstrations are also the test data, and the paths must be equal.
    """
    facts = [
        {"model": model.name, "size": model.parameter_count}
        | {f"task.{name}": value for name, value in (model.config.get("task") or {}).items()}
        for model in models
    ]
    ignored = {"task.episodes"} | ({"task.path"} if facts[0].get("task.env") else set())
    names = sorted(set().union(*facts) - ignored)
    return [name for name in names if any(f.get(name) != facts[0].get(name) for f in facts)]


def parse_checkpoint(text: str) -> tuple[Path, dict[str, Any]]:
    """Split ``RUN[@name=value,...]`` into the path and the changed inference options.

    RUN can also be ``pretrained:NAME`` or ``hf://USER/NAME[@REVISION]``, which is downloaded.

    Raises:
        ConfigError: the text after the @ is not a list of ``name=value``, or no pretrained model
            has this name.
        HubError: the model cannot be downloaded.
    """
    return local_checkpoint(_split_options(text)[0]), checkpoint_options(text)


def base_name(text: str) -> str:
    """Return the last part of RUN in ``RUN[@name=value,...]``.

    >>> base_name("runs/a@steps=2"), base_name("hf://someone/arm@v1@steps=2")
    ('a', 'someone/arm@v1')
    """
    source, _ = _split_options(text)
    if source.startswith(hub.PREFIX):
        return source.removeprefix(hub.PREFIX)
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX)
    return Path(source).resolve().name


def checkpoint_options(text: str) -> dict[str, Any]:
    """Return the changed inference options of ``RUN[@name=value,...]``.

    Raises:
        ConfigError: the text after the @ is not a list of ``name=value``.
    """
    changes = list(filter(None, _split_options(text)[1].split(",")))
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"checkpoint={text}: after @ write name=value, got {change!r}.")
    try:
        return {str(k): v for k, v in OmegaConf.from_dotlist(changes).items()}
    except YAMLError as error:
        raise ConfigError(f"checkpoint={text}: after @ write name=value.") from error


def _split_options(text: str) -> tuple[str, str]:
    """Split ``RUN[@name=value,...]`` at the last @.

    It does not split at the @ of a revision, or of the name of an existing folder.
    """
    source, _, tail = text.rpartition("@") if "@" in text else (text, "", "")
    is_revision = text.startswith(hub.PREFIX) and "=" not in tail
    if is_revision or Path(text).exists():  # the name of the folder contains an @
        return text, ""
    return source, tail


def matching_runs(path: Path) -> list[Path]:
    """Return the sorted folders that match a pattern; a path without a pattern alone.

    A pattern with the suffix of a file, such as ``*.pth``, matches files.
    """
    if has_magic(path.name) and not path.exists():
        matches = sorted(path.parent.glob(path.name))
        return [match for match in matches if match.is_dir() or path.suffix == FILE_SUFFIX]
    return [path]


def checkpoint_domain(text: str) -> Domain | None:
    """Return the domain of the model in ``checkpoint=...``, or None if it cannot be read."""
    try:
        runs = matching_runs(parse_checkpoint(text)[0])
        return stored_domain(runs[0]) if runs else None
    except (CheckpointError, hub.HubError):
        return None  # loading the checkpoint will raise the error


def load_entries(
    model_class: type[M], checkpoints: Sequence[str], device: torch.device
) -> list[EvalEntry[M]]:
    """Load an entry for each ``RUN[@name=value,...]``, with unique names.

    Raises:
        CheckpointError, ConfigError: see `EvalEntry.load`, or an entry is listed twice.
    """
    load_model = partial(model_class.from_checkpoint, device=device)
    return with_unique_names([EvalEntry.load(text, load_model) for text in checkpoints])


def with_unique_names(entries: list[Entry]) -> list[Entry]:
    """Make the names of entries unique by adding parent folders to equal names.

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
    """Return how the models of an entry were trained, with steps and times averaged over runs."""
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
    """Return the metadata of an entry for ``summary.json``: training, command and version."""
    metadata = run_metadata(entry.models)
    return {"name": entry.name, **metadata, "command": command, **provenance()}


def metadata_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the metadata in an entry's summary as (term, text) rows of the report."""
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
