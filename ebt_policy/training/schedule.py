"""The counters of a run, its planned number of steps, and the schedule of its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ebt_policy.training.config import TrainConfig


@dataclass
class Progress:
    """The counters of a run that a checkpoint stores.

    Attributes:
        step: number of updates so far.
        total_steps: number of updates of the whole run; None until it is planned.
        seconds: training time so far.
        warm_step, warm_seconds: step and time from which the rate of steps is measured.
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

    The first plan is made when the warm-up ends or a tenth of the budget is used. Every log line
    adjusts it until half of the budget is used, because the speed of a machine changes. Then it is
    fixed. At least one adjustment is made, because the rate of the first plan may still include
    compilation.

    Args:
        progress: counters of the run, changed in place.
        config: see `TrainConfig`; without ``minutes`` nothing is planned.
        rate: steps per second since the last log line.
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
    else:  # the mean since the first plan, because the rate of one log line is too noisy
        rate = (progress.step - progress.warm_step) / (progress.seconds - progress.warm_seconds)
    remaining_s = max(budget - progress.seconds, 0.0)
    progress.total_steps = progress.step + max(int(rate * remaining_s), 1)
