"""What `train` hands to the trainer, and how the result is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ebt_policy.models.base import Model
from ebt_policy.training.trainer import Data, TrainConfig


class TrainingSetup(NamedTuple):
    """An untrained model and its data, to train on and held out, and one line about them."""

    model: Model
    data: Data
    held_out: Data | None
    note: str


class TrainingTask(ABC):
    """Something to train.

    Args:
        config: resolved content of the configuration.
        train: its section of that name.

    Raises:
        ConfigError: whatever can be found to be wrong before anything is loaded.
    """

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        self.config, self.train = config, train

    @abstractmethod
    def fetch(self) -> str:
        """Get the data, which one process does before the others; a line about it."""

    def first(self) -> dict[str, Any] | None:
        """The configuration of what must be trained before this, if anything; called once the data
        is there."""
        return None

    @abstractmethod
    def build(self, device: torch.device) -> TrainingSetup:
        """The model and its data on a device."""

    def tryout(self, model: Any) -> dict[str, float]:
        """Metrics of the averaged model in the middle of training."""
        return {}

    @property
    def tries_out(self) -> bool:
        """Whether `tryout` is worth a call."""
        return self.train.rollout_every > 0

    @abstractmethod
    def evaluate(self, run_dir: Path, device: torch.device, command: str) -> None:
        """Show how good the trained model is, if the configuration asks for it."""
