"""The configuration of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ebt_policy.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """Options of the section ``train``.

    Exactly one of ``steps`` and ``minutes`` is set; the other is None.

    Args:
        steps: number of updates.
        minutes: training time without compilation, evaluation and saving. `plan_total_steps` turns
            it into a number of steps.
        batch_size: rows of the global batch.
        lr, weight_decay: options of AdamW. The learning rate has a linear warm-up over
            ``warmup_steps`` and a cosine decay to lr / 10.
        max_grad_norm: norm to which gradients are clipped.
        ema_power: the decay of the weight average is 1 - (1 + step) ** -power (Diffusion Policy
            uses 0.75).
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        compile: whether to compile the loss with torch.compile.
        checkpoint_every, eval_every, log_every: in steps; ``eval_every=0`` disables evaluation.
    """

    steps: int | None
    minutes: float | None
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int
    max_grad_norm: float
    ema_power: float
    mixed_precision: str
    compile: bool
    checkpoint_every: int
    eval_every: int
    log_every: int

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError(
                "set exactly one of train.steps and train.minutes, and the other to null."
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"train.steps must be at least 1, got {self.steps}.")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"train.minutes must be positive, got {self.minutes}.")
        for name in ("batch_size", "lr", "warmup_steps", "max_grad_norm", "ema_power",
                     "checkpoint_every", "log_every"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"train.{name} must be positive, got {getattr(self, name)}.")
        for name in ("weight_decay", "eval_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} must be at least 0, got {getattr(self, name)}.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ConfigError(
                f"train.mixed_precision must be no, bf16 or fp16, got {self.mixed_precision}."
            )


@dataclass(frozen=True)
class RunConfig:
    """The sections of ``configs/train.yaml``, which documents them."""

    domain: str
    task: dict[str, Any]
    model: dict[str, Any]
    objective: dict[str, Any] | None
    size: dict[str, Any]
    seed: int
    run_dir: str
    resume: bool
    device: str
    tracker: str
    train: dict[str, Any]
    evaluation: dict[str, Any]
    vision: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed must be from 0 to {(1 << 32) - 1}, got {self.seed}.")
