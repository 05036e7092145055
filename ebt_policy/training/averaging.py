"""The moving average of a model's weights, which a checkpoint stores for inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ebt_policy.models.base import Model

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


MAX_DECAY = 0.9999


def weight_average(model: nn.Module, power: float) -> EMAModel:
    """Return an exponential moving average of the weights, which is updated in place.

    Args:
        model: model whose weights are averaged.
        power: the decay is 1 - (1 + step) ** -power.
    """
    from diffusers.training_utils import EMAModel  # slow to import

    return EMAModel(
        model.parameters(), decay=MAX_DECAY, use_ema_warmup=True, power=power, foreach=True
    )


def averaged_copy(model: nn.Module, power: float) -> AveragedModel:
    """Return a copy of a model whose weights are the average of `weight_average`.

    Trainers of other libraries use it, because the average and the number of its updates are part
    of its ``state_dict``. Call ``update_parameters(model)`` after each update of the model. The
    attribute ``module`` is the averaged model.

    Args:
        model, power: as in `weight_average`.
    """

    def average(averaged: Any, current: Any, count: Tensor | int) -> None:
        weight = max((1 + float(count)) ** -power, 1 - MAX_DECAY)
        torch._foreach_lerp_(averaged, current, weight)  # pyright: ignore

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(average)).requires_grad_(False)


@contextmanager
def averaged_weights(model: Model, average: EMAModel) -> Iterator[Model]:
    """Replace a model's weights with their average within this context."""
    average.store(model.parameters())
    average.copy_to(model.parameters())
    try:
        yield model
    finally:
        average.restore(model.parameters())
