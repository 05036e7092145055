"""How far a run is, how far it goes, and the learning rate on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ebt_policy.training.config import TrainConfig


@dataclass
class Progress:
    """The counters of a run that a checkpoint stores.

    Attributes:
        step: updates made.
        total_steps: updates to make; None until they are planned.
        seconds: of training.
        warm_step, warm_seconds: where the rate of steps is measured from.
    """

    step: int = 0
    total_steps: int | None = None
    seconds: float = 0.0
    warm_step: int = 0
    warm_seconds: float = 0.0


def learning_rate_factor(step: int, total_steps: int | None, warmup_steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine from 1 to 0.1."""
    if step < warmup_steps or total_steps is None:
        return min(1.0, (step + 1) / warmup_steps)
    share = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def plan_total_steps(progress: Progress, config: TrainConfig, rate: float) -> None:
    """Turn the budget of ``train.minutes`` into ``progress.total_steps``.

    The first plan is made when the warm-up ends (compilation is over by then), or with a tenth of
    the budget used. It is adjusted at each log line until half of the budget is used, because
    machines slow down and speed up; then it is fixed. At least one adjustment is made: if
    compilation takes most of the first half, the first plan does not know the speed after it.

    Args:
        rate: steps a second since the last log line.
    """
    if config.minutes is None:
        return
    budget = 60.0 * config.minutes
    warm = progress.step >= config.warmup_steps or progress.seconds > 0.1 * budget
    if progress.total_steps is None:
        if not warm:
            return
        progress.warm_step, progress.warm_seconds = progress.step, progress.seconds
    elif progress.seconds >= budget or (
        progress.seconds > 0.5 * budget and progress.step - progress.warm_step > config.log_every
    ):
        return
    else:  # the mean since then: the rate of one log line is too noisy to plan by
        rate = (progress.step - progress.warm_step) / (progress.seconds - progress.warm_seconds)
    remaining_s = max(budget - progress.seconds, 0.0)
    progress.total_steps = progress.step + max(int(rate * remaining_s), 1)
