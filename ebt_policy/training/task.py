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
    """Everything that the trainer needs from a task.

    Attributes:
        model: untrained model on the training device.
        train_data, validation_data: data on the same device; ``validation_data`` is None without
            held-out data.
        note: one line about the data, for the console.
        validate: returns metrics of the averaged model; called every ``train.eval_every`` steps.
            None if there is nothing to measure.
    """

    model: Model
    train_data: TrainingData
    validation_data: TrainingData | None
    note: str
    validate: Callable[[Any], dict[str, float]] | None = None


class TrainingTask(ABC, Generic[Data]):
    """Base class of training tasks.

    Args:
        config: resolved configuration.
        train: options of its section ``train``.

    Attributes:
        models: the registry in which ``model.name`` is looked up.

    Raises:
        ConfigError: if the configuration has a mistake that is visible before data is loaded.
    """

    models: ClassVar[Registry[Any]]

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        self.config, self.train = config, train

    @abstractmethod
    def load_data(self) -> Data:
        """Load the data. The main process does this first and fills the caches for the others."""

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
        """Evaluate the trained model, if the configuration requests it.

        Args:
            data: result of `load_data`.
            run_dir: run folder with the checkpoints and the report.
            device: device of the evaluation.
            command: command line, which the report states.
        """


# Tasks by the option ``domain``. Installed plug-ins add tasks through entry points.
TASKS: Registry[type[TrainingTask[Any]]] = Registry("domain", "ebt_policy.domains")

# Each domain is imported only when it is trained, because it needs libraries that the others do
# not need.
TASKS.declare("policy", "ebt_policy.policies.task:PolicyTrainingTask")
TASKS.declare("text", "ebt_policy.language.task:TextTrainingTask")
TASKS.declare("image", "ebt_policy.image.task:ImageTrainingTask")
TASKS.declare("video", "ebt_policy.video.task:VideoTrainingTask")
