"""The moving average of a model's weights, which a checkpoint stores for inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ebt_policy.models.base import Model

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


def weight_average(model: Model, power: float) -> EMAModel:
    """Return an exponential moving average of the weights, which is updated in place.

    Args:
        model: model whose weights are averaged.
        power: the decay is 1 - (1 + step) ** -power.
    """
    from diffusers.training_utils import EMAModel  # slow to import

    return EMAModel(model.parameters(), use_ema_warmup=True, power=power, foreach=True)


@contextmanager
def averaged_weights(model: Model, average: EMAModel) -> Iterator[Model]:
    """Replace a model's weights with their average within this context."""
    average.store(model.parameters())
    average.copy_to(model.parameters())
    try:
        yield model
    finally:
        average.restore(model.parameters())
