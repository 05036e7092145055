"""The moving average of a model's weights, which is what a checkpoint stores for inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.training_utils import EMAModel

from ebt_policy.models.base import Model


def weight_average(model: Model, power: float) -> EMAModel:
    """Return an exponential moving average of the weights, which is updated in place.

    Args:
        power: the decay is 1 - (1 + step) ** -power.
    """
    return EMAModel(model.parameters(), use_ema_warmup=True, power=power, foreach=True)


@contextmanager
def averaged_weights(model: Model, average: EMAModel) -> Iterator[Model]:
    """Give a model its averaged weights within this context."""
    average.store(model.parameters())
    average.copy_to(model.parameters())
    try:
        yield model
    finally:
        average.restore(model.parameters())
