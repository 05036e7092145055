"""What the trainer trains and a checkpoint holds: the interface of all models, and their storage.

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
from ebt_policy.models.migration import migrate_config
from ebt_policy.models.pretrained import resolve_pretrained

FORMAT_VERSION = 2  # of the checkpoints written here; earlier ones are migrated


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing, damaged or of another version."""


class Domain(StrEnum):
    """What a model predicts."""

    POLICY = "policy"
    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"

    @property
    def noun(self) -> str:
        """Return a noun phrase for messages, such as ``an image model``."""
        if self is Domain.POLICY:
            return "a policy"
        return f"{'an' if self is Domain.IMAGE else 'a'} {self.value} model"


class Model(nn.Module, ABC):
    """Base of all policies, language models, ...

    Attributes:
        name: of its class, in configurations.
        domain: what it predicts.
        files: that a checkpoint has besides weights, configuration and version.
        config: the sections it was built from, stored with a checkpoint.
        inference: how it predicts (a frozen dataclass), or None where there is nothing to choose.
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
        """What a batch holds of each row."""

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch as the data has it, in the network's units."""
        return batch

    @abstractmethod
    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The randomness of a training step on a normalised batch; tensors have B first."""

    def with_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add ``batch["noise"]``, all the randomness of a training step."""
        return {**{key: batch[key] for key in self.keys}, "noise": self.sample_noise(batch)}

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and metrics of a drawn batch: a pure function, so that it compiles."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and metrics of a batch."""
        return self(self.with_noise(batch))

    def before_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Hook before a training step's `with_noise`: may add rows to the global batch."""
        return batch

    def after_step(self, rows: dict[str, Tensor]) -> None:
        """Hook after a training step whose metrics held the ``candidate`` of each row.

        Args:
            rows: what `keys` names, normalised, and "candidate" of the global batch.
        """

    def extra_training_state(self) -> dict[str, Any]:
        """What a checkpoint must keep besides weights, so that training resumes exactly."""
        return {}

    def load_extra_training_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_training_state` gave."""

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups: matrices are decayed, vectors (biases, norms) are not."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        return [
            {"params": matrices, "lr": lr, "weight_decay": weight_decay},
            {"params": vectors, "lr": lr, "weight_decay": 0.0},
        ]

    # -- inference ---------------------------------------------------------------------------

    def configure_inference(self, **changes: Any) -> None:
        """Change how it predicts (steps, candidates, scheduler, ...).

        Raises:
            ConfigError: an unknown option or a value that it cannot have.
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
        """Where its parameters are."""
        return next(self.parameters()).device

    def save(self, folder: Path) -> None:
        """Write weights, configuration and `files` into an existing folder."""
        weights = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        config = {"domain": self.domain.value, **self.config, **self._data_config}
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        self._write(folder)
        (folder / "format_version").write_text(str(FORMAT_VERSION))

    @property
    def _data_config(self) -> dict[str, Any]:
        """Sections of its configuration that came from its data."""
        return {}

    def _write(self, folder: Path) -> None:
        """Write `files`."""

    @classmethod
    @abstractmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        """An untrained model from what `save` wrote."""

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Load a model from a checkpoint or run folder.

        Raises:
            CheckpointError: missing, damaged, of another version, or of another kind of model.
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
        # The weights stay as they are while candidates descend; a graph of them would cost time.
        return model.to(device).eval().requires_grad_(False)


def read_checkpoint_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint folder, migrated to the present version.

    Raises:
        CheckpointError: missing, damaged, or written by a newer version.
    """
    _require_files(folder, "config.yaml", "format_version")
    with wrap_read_errors(folder / "format_version"):
        version = int((folder / "format_version").read_text())
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format {version}, and this version of the package reads formats up to "
            f"{FORMAT_VERSION}; update the package."
        )
    with wrap_read_errors(folder / "config.yaml"):
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        return migrate_config(config)


def stored_domain(path: str | Path) -> Domain:
    """Return the domain of the model in a checkpoint or run folder.

    Raises:
        CheckpointError: it cannot be read.
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
    """Whatever a damaged file leads to becomes one sentence that names the file."""
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
    """Return a checkpoint folder as it is, the newest one of a run, or that of pretrained:NAME.

    Raises:
        CheckpointError: there is none.
        ConfigError: no pretrained model has this name.
    """
    folder = resolve_pretrained(path)
    if (folder / "checkpoints").is_dir():
        checkpoints = sorted((folder / "checkpoints").glob("step_*"))
        if not checkpoints:
            raise CheckpointError(f"{folder}/checkpoints is empty; train first.")
        return checkpoints[-1]
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint at {folder}.")
    return folder
