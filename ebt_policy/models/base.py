"""The interface of all models, and their storage in checkpoints.

Shapes: B batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from yaml import YAMLError

from ebt_policy.config import options
from ebt_policy.errors import ConfigError, UserError
from ebt_policy.io import hub
from ebt_policy.models.checkpoint_source import local_checkpoint
from ebt_policy.models.migration import migrate_config

FORMAT_VERSION = 2  # of written checkpoints; earlier formats are migrated when they are read


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing, damaged or of another version."""


class Domain(StrEnum):
    """The kind of data that a model predicts."""

    POLICY = "policy"
    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"

    @property
    def noun(self) -> str:
        """Noun phrase for messages, such as ``an image model``."""
        if self is Domain.POLICY:
            return "a policy"
        return f"{'an' if self is Domain.IMAGE else 'a'} {self.value} model"


class Model(nn.Module, ABC):
    """Base class of all models: policies, language models, image models and video models.

    Attributes:
        name: name of the class in configurations.
        domain: domain of its predictions.
        files: files of a checkpoint besides weights, configuration and version.
        config: configuration sections from which it was built; checkpoints store them.
        inference: inference options (a frozen dataclass), or None if it has none.
    """

    name: ClassVar[str]
    domain: ClassVar[Domain]
    files: ClassVar[tuple[str, ...]] = ()
    config: dict[str, Any]
    inference: Any = None

    # -- training ---------------------------------------------------------------------------

    @property
    @abstractmethod
    def keys(self) -> tuple[str, ...]:
        """Names of the tensors in a batch."""

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch of raw data in the network's units."""
        return batch

    @abstractmethod
    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return all randomness of a training step on a normalised batch; tensors have B first."""

    def with_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors named by `keys`, and ``noise``, all randomness of a training step."""
        return {**{key: batch[key] for key in self.keys}, "noise": self.sample_noise(batch)}

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return scalar loss and metrics of a batch with noise.

        This is a pure function, so that it compiles.
        """

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return scalar loss and metrics of a normalised batch with new noise."""
        return self(self.with_noise(batch))

    def training_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return scalar loss and metrics of a training step on a normalised batch.

        For trainers of other libraries, in one process.
        """
        batch = self.with_noise(self.before_step(batch))
        loss, metrics = self(batch)
        if (candidate := metrics.pop("candidate", None)) is not None:
            self.after_step({key: batch[key] for key in self.keys} | {"candidate": candidate})
        return loss, metrics

    def compile_training(self) -> None:
        """Compile `forward`, or its expensive part."""
        self.compile()

    def before_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the global batch of a training step; called before `with_noise`.

        A model may add rows to the batch.
        """
        return batch

    def after_step(self, rows: dict[str, Tensor]) -> None:
        """Process the rows of a training step whose metrics have a ``candidate`` of each row.

        Args:
            rows: normalised tensors named by `keys`, and "candidate", of the global batch.
        """

    def extra_training_state(self) -> dict[str, Any]:
        """Return the state that training needs besides weights to resume exactly."""
        return {}

    def load_extra_training_state(self, state: dict[str, Any]) -> None:
        """Load a state that `extra_training_state` returned."""

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return optimizer groups: weight decay for matrices, none for vectors (biases, norms)."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        return [
            {"params": matrices, "lr": lr, "weight_decay": weight_decay},
            {"params": vectors, "lr": lr, "weight_decay": 0.0},
        ]

    # -- inference ---------------------------------------------------------------------------

    def configure_inference(self, **changes: Any) -> None:
        """Change inference options (steps, candidates, scheduler, ...).

        Raises:
            ConfigError: if an option is unknown or its value is invalid.
        """
        if self.inference is None:
            if changes:
                raise ConfigError(
                    f"model={self.name} has no inference option {', '.join(sorted(changes))}."
                )
            return
        options(type(self.inference), changes, f"inference of model={self.name}")
        self.inference = replace(self.inference, **changes)

    # -- storage ----------------------------------------------------------------------------

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def save(self, folder: Path) -> None:
        """Write weights, configuration and `files` into an existing folder."""
        weights = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        OmegaConf.save(OmegaConf.create(self.stored_config), folder / "config.yaml")
        self._write(folder)
        (folder / "format_version").write_text(str(FORMAT_VERSION))

    @property
    def stored_config(self) -> dict[str, Any]:
        """The configuration that a checkpoint stores."""
        return {"domain": self.domain.value, **self.config, **self._data_config}

    @property
    def _data_config(self) -> dict[str, Any]:
        """Configuration sections that come from the data."""
        return {}

    def _write(self, folder: Path) -> None:
        """Write `files` into a folder."""

    @classmethod
    @abstractmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        """Return an untrained model from a configuration and the files that `save` wrote."""

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Load a model from a checkpoint (see `checkpoint_folder`).

        Raises:
            CheckpointError: if the checkpoint is missing, damaged, of a newer version, or of
                another kind of model.
        """
        folder = checkpoint_folder(path)
        _require_files(folder, "model.safetensors")
        config = read_checkpoint_config(folder)
        with wrap_read_errors(folder / "config.yaml"):
            domain = Domain(config["domain"])
        if domain is not cls.domain:
            raise CheckpointError(f"{folder} holds {domain.noun}, not {cls.domain.noun}.")
        _require_files(folder, *cls.files)
        with wrap_read_errors(folder / "config.yaml"):
            model = cls._from_config(config, folder)
        if not isinstance(model, cls):
            raise CheckpointError(f"{folder} holds model={model.name}, not {cls.__name__}.")
        with wrap_read_errors(folder / "model.safetensors"):
            model.load_state_dict(load_file(folder / "model.safetensors"))
        # Weights do not change while candidates descend, so a graph of them would waste time.
        return model.to(device).eval().requires_grad_(False)


def read_checkpoint_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint folder, migrated to the current version.

    Raises:
        CheckpointError: if it is missing, damaged, or written by a newer version.
    """
    _require_files(folder, "config.yaml", "format_version")
    with wrap_read_errors(folder / "format_version"):
        version = int((folder / "format_version").read_text())
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format {version}, but this version of the package reads formats up to "
            f"{FORMAT_VERSION}; update the package."
        )
    with wrap_read_errors(folder / "config.yaml"):
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        return migrate_config(config)


def stored_domain(path: str | Path) -> Domain:
    """Return the domain of the model in a checkpoint or run folder.

    Raises:
        CheckpointError: if the checkpoint is missing or cannot be read.
    """
    folder = checkpoint_folder(path)
    with wrap_read_errors(folder / "config.yaml"):
        return Domain(read_checkpoint_config(folder)["domain"])


def _require_files(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; is it a checkpoint folder?")


@contextmanager
def wrap_read_errors(file: Path) -> Iterator[None]:
    """Turn any error that a damaged file causes into a `CheckpointError` that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except (
        SafetensorError, YAMLError, OmegaConfBaseException,
        RuntimeError, ValueError, LookupError, TypeError, AttributeError, OSError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"{file} cannot be read ({reason}).") from error


def checkpoint_folder(path: str | Path) -> Path:
    """Return the checkpoint folder that a path names.

    Args:
        path: a checkpoint folder, a run folder (for its newest checkpoint), ``pretrained:NAME`` or
            ``hf://USER/NAME[@REVISION]``.

    Raises:
        CheckpointError: if there is no checkpoint.
        ConfigError: if no pretrained model has this name.
        HubError: if the model cannot be downloaded from the Hub.
    """
    folder = local_checkpoint(path)
    if (folder / "checkpoints").is_dir():
        checkpoints = sorted((folder / "checkpoints").glob("step_*"))
        if not checkpoints:
            raise CheckpointError(f"{folder}/checkpoints is empty; train first.")
        return checkpoints[-1]
    if not folder.is_dir():
        is_name = hub.is_repository_name(str(path)) and not folder.parent.exists()
        hint = f" For the Hugging Face Hub, write hf://{path}." if is_name else ""
        raise CheckpointError(f"there is no checkpoint at {folder}.{hint}")
    return folder
