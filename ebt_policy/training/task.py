"""Training tasks: what `train` trains, on which data, and how the result is evaluated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from ebt_policy.models.base import Model
from ebt_policy.registry import Registry
from ebt_policy.training.batches import TrainingData
from ebt_policy.training.config import TrainConfig

Data = TypeVar("Data")


@dataclass(frozen=True)
class TrainingSetup:
    """All that a trainer needs of a task.

    Attributes:
        model: untrained, on the device of the training.
        train_data, validation_data: on the same device; None without held-out data.
        note: one line about the data, for the console.
        validate: returns metrics of the averaged model, every ``train.eval_every`` steps; None
            if there is nothing to measure.
    """

    model: Model
    train_data: TrainingData
    validation_data: TrainingData | None
    note: str
    validate: Callable[[Any], dict[str, float]] | None = None


class TrainingTask(ABC, Generic[Data]):
    """Base of what can be trained.

    Args:
        config: resolved content of the configuration.
        train: its section of that name.

    Attributes:
        models: the registry in which ``model.name`` is looked up.

    Raises:
        ConfigError: for every mistake that is visible before data is loaded.
    """

    models: ClassVar[Registry[Any]]

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        self.config, self.train = config, train

    @abstractmethod
    def load_data(self) -> Data:
        """Load the data; one process does so, and fills the caches, before the others."""

    @abstractmethod
    def describe(self, data: Data) -> str:
        """Return one line about the data: its name, size and origin."""

    def prerequisite(self, data: Data) -> dict[str, Any] | None:
        """Return the configuration of a model that must be trained first, or None."""
        return None

    @abstractmethod
    def build(self, data: Data, device: torch.device) -> TrainingSetup:
        """Build the model and put the data on a device."""

    @abstractmethod
    def evaluate(self, data: Data, run_dir: Path, device: torch.device, command: str) -> None:
        """Evaluate the trained model, if the configuration asks for it."""


# By the option ``domain``; installed plug-ins add tasks by entry points.
TASKS: Registry[type[TrainingTask[Any]]] = Registry("domain", "ebt_policy.domains")

# The domains of this package. Each is imported when it is trained: it needs libraries that the
# others do not.
TASKS.declare("policy", "ebt_policy.policies.task:PolicyTrainingTask")
TASKS.declare("text", "ebt_policy.language.task:TextTrainingTask")
TASKS.declare("image", "ebt_policy.image.task:ImageTrainingTask")
TASKS.declare("video", "ebt_policy.video.task:VideoTrainingTask")
