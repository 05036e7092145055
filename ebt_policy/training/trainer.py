"""The trainer, one for every policy.

A step is: gather a batch, draw its randomness, loss, backward, clip, AdamW, average. All of it
depends on the seed and the step number alone, so that a run that was killed and resumed equals one
that was not, bit for bit on the CPU, and several processes equal one.

Every process gathers and draws the *global* batch (cheap: the data is resident) and trains on its
own slice of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor

from ebt_policy.data.windows import Windows
from ebt_policy.models.policy import ConfigError, Policy
from ebt_policy.training.checkpoint import (
    load_trainer_state,
    newest_checkpoint,
    save_checkpoint,
    unusable,
)
from ebt_policy.training.log import MetricLog
from ebt_policy.training.progress import TrainingProgress


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Args:
        steps: updates to make; or
        minutes: wall-clock budget, turned into a number of steps when the warm-up ends and
            adjusted until half of it is used. Exactly one of the two is set.
        batch_size: global batch.
        lr, weight_decay: AdamW's; linear warm-up over ``warmup_steps``, cosine to lr / 10.
        max_grad_norm: gradient clipping.
        ema_power: the averaging decay is 1 - (1 + step) ** -power (Diffusion Policy uses 0.75).
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        compile: compile the loss with torch.compile.
        checkpoint_every, rollout_every, log_every: in steps; 0 rollouts for none.
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
    rollout_every: int
    log_every: int

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError(
                "set exactly one of train.steps and train.minutes, the other to null."
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"train.steps must be at least 1, got {self.steps}.")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"train.minutes must be positive, got {self.minutes}.")
        for name in ("batch_size", "lr", "warmup_steps", "max_grad_norm", "ema_power",
                     "checkpoint_every", "log_every"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"train.{name} must be positive, got {getattr(self, name)}.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ConfigError(
                f"train.mixed_precision must be no, bf16 or fp16, got {self.mixed_precision}."
            )


class NonFiniteLoss(RuntimeError):
    """Training met a loss that is NaN or infinite."""


@dataclass
class Progress:
    """What a checkpoint remembers of the run besides tensors."""

    step: int = 0
    total_steps: int | None = None
    seconds: float = 0.0
    warm_step: int = 0
    warm_seconds: float = 0.0


class Trainer:
    """Trains a policy in a run folder.

    Args:
        policy: untrained, on the CPU.
        windows: the training data, normalised.
        config: see `TrainConfig`.
        run_dir: gets ``checkpoints/`` and ``log.jsonl``.
        seed: of batches and draws.
        accelerator: device, precision and processes.
        validation: held-out data; its loss is logged at each checkpoint.
        log: metric log of the main process.
        rollout: plays a few episodes with a policy and returns metrics to log.
    """

    def __init__(
        self,
        policy: Policy,
        windows: Windows,
        config: TrainConfig,
        run_dir: Path,
        *,
        seed: int,
        accelerator: Accelerator,
        validation: Windows | None = None,
        log: MetricLog | None = None,
        rollout: Callable[[Policy], dict[str, float]] | None = None,
    ) -> None:
        processes = accelerator.num_processes
        if config.batch_size % processes:
            raise ConfigError(
                f"train.batch_size={config.batch_size} must be a multiple of the "
                f"{processes} processes."
            )
        if len(windows) < config.batch_size:
            raise ConfigError(
                f"there are {len(windows)} training windows, fewer than "
                f"train.batch_size={config.batch_size}; lower it."
            )
        self.policy, self.windows, self.config = policy, windows, config
        self.run_dir, self.seed, self.accelerator = run_dir, seed, accelerator
        self.validation, self.log, self.rollout = validation, log, rollout
        self.progress = Progress(total_steps=config.steps)
        # Every process draws the same random numbers: they belong to the global batch.
        set_seed(seed)
        optimizer = torch.optim.AdamW(
            policy.parameter_groups(config.lr, config.weight_decay), betas=(0.9, 0.95)
        )
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        if config.compile:
            policy.compile()
        self.model, self.optimizer = accelerator.prepare(policy, optimizer)
        self.ema = EMAModel(
            policy.parameters(), use_ema_warmup=True, power=config.ema_power, foreach=True
        )

    # -- state ------------------------------------------------------------------------------

    def resume(self) -> int | None:
        """Continue from the newest checkpoint of the run folder; the step it was at, or None.

        Raises:
            CheckpointError: the trainer state is damaged, or of another network or optimizer.
        """
        folder = newest_checkpoint(self.run_dir)
        if folder is None:
            return None
        state = load_trainer_state(folder)
        try:
            self._restore(state)
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise unusable(folder, str(error)) from error
        return self.progress.step

    def _restore(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(device=self.accelerator.device)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.policy.load_extra_training_state(state["extra"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])

    def save(self) -> Path:
        """Write a checkpoint of the present step (main process)."""
        scaler = self.accelerator.scaler
        state = {
            # A copy: the policy itself takes its averaged weights while it is written.
            "policy": {k: v.clone() for k, v in self.policy.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "extra": self.policy.extra_training_state(),
            "progress": asdict(self.progress),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        self.policy.config["trained"] = {
            "steps": self.progress.step,
            "seconds": round(self.progress.seconds, 1),
            "device": self.accelerator.device.type,
        }
        with self.averaged_weights():
            return save_checkpoint(self.run_dir, self.progress.step, self.policy, state)

    def averaged_weights(self) -> _Averaged:
        """Within this context the policy has its averaged weights."""
        return _Averaged(self.ema, self.policy)

    # -- training ---------------------------------------------------------------------------

    def batch(self, step: int) -> dict[str, Any]:
        """Global batch of a step: epochs without replacement, each in an order of its own."""
        size, count = self.config.batch_size, len(self.windows)
        per_epoch = count // size
        epoch, place = divmod(step, per_epoch)
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        index = torch.randperm(count, generator=order)[place * size : (place + 1) * size]
        return self.windows.gather(index)

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then a cosine from 1 to 0.1."""
        warmup = self.config.warmup_steps
        if step < warmup or self.progress.total_steps is None:
            return min(1.0, (step + 1) / warmup)
        share = (step - warmup) / max(self.progress.total_steps - warmup, 1)
        return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))

    def train_step(self) -> dict[str, Tensor]:
        """One update; returns metrics."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.learning_rate_factor(self.progress.step)
        batch = self.policy.draw(self.batch(self.progress.step))
        batch = _part(batch, self.accelerator.process_index, self.accelerator.num_processes)
        loss, metrics = self.model(batch)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        assert norm is not None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.policy.parameters())
        candidate = metrics.pop("candidate", None)
        if candidate is not None:
            # The replay buffer, too, belongs to the global batch.
            rows = {"obs": batch["obs"], "action": batch["action"], "candidate": candidate}
            everyones: Any = self.accelerator.gather(rows)
            self.policy.after_step(everyones)
        self.progress.step += 1
        return {"loss": loss.detach(), "grad_norm_weights": norm, **metrics}

    def fit(self) -> None:
        """Train to the end, with progress, logs, rollouts and checkpoints.

        Raises:
            NonFiniteLoss: naming the step and the last good checkpoint.
        """
        config, progress, main = self.config, self.progress, self.accelerator.is_main_process
        done = progress.step
        if progress.total_steps is not None and done >= progress.total_steps:
            return
        self.policy.train()
        last = newest_checkpoint(self.run_dir)
        mark, mark_step = time.perf_counter(), progress.step
        nothing = sum_loss = torch.zeros((), device=self.accelerator.device)
        with TrainingProgress(progress, enabled=main) as bar:
            while progress.total_steps is None or progress.step < progress.total_steps:
                try:
                    metrics = self.train_step()
                except FloatingPointError as error:  # the descent's own check, in eager mode
                    raise _not_finite(f"in step {progress.step + 1}", last) from error
                step = progress.step
                sum_loss = sum_loss + metrics["loss"]
                ending = step == progress.total_steps
                log_now = ending or step % config.log_every == 0
                save_now = ending or step % config.checkpoint_every == 0
                if log_now or save_now:
                    # A bad gradient shows in the next loss, too late for this step's checkpoint.
                    # With a scaler it is no fault: such a step is skipped.
                    fault = (
                        self.accelerator.scaler is None
                        and not metrics["grad_norm_weights"].isfinite()
                    )
                    if fault or not sum_loss.isfinite():
                        raise _not_finite(f"at or before step {step}", last)
                if log_now:
                    now = time.perf_counter()
                    progress.seconds += now - mark
                    rate = (step - mark_step) / (now - mark)
                    shared: Any = self.accelerator.reduce(sum_loss, "mean")
                    mean = float(shared) / (step - mark_step)
                    mark, mark_step, sum_loss = now, step, nothing
                    self._plan(rate)
                    values = {k: float(v) for k, v in metrics.items() if v.numel() == 1}
                    values |= {"loss": mean, "lr": self.optimizer.param_groups[0]["lr"]}
                    values |= {"steps_per_second": rate, "seconds": progress.seconds}
                    bar.update(mean, rate)
                paused = time.perf_counter()
                if log_now and self.log is not None:
                    if save_now and self.validation is not None:
                        values |= self._validate(self.validation)
                    self.log.write(step=step, **values)
                if save_now and main:
                    last = self.save()
                rollout_now = config.rollout_every and step % config.rollout_every == 0
                if rollout_now and main and not ending:
                    self._rollout(step)
                mark += time.perf_counter() - paused  # not training time
        self.accelerator.wait_for_everyone()

    def _plan(self, rate: float) -> None:
        """Turn the budget of minutes into a number of steps, the same on all processes.

        Planned when the warm-up ends (compiling is over by then) and again at each log line until
        half of the budget is used, as machines slow down and speed up; from there on it is fixed.
        """
        progress, minutes = self.progress, self.config.minutes
        if minutes is None or progress.step < self.config.warmup_steps:
            return
        if progress.total_steps is None:
            progress.warm_step, progress.warm_seconds = progress.step, progress.seconds
        elif progress.seconds > 0.5 * 60.0 * minutes:
            return
        else:  # the mean since then: one log line's rate is too noisy to plan by
            rate = (progress.step - progress.warm_step) / (progress.seconds - progress.warm_seconds)
        left = max(60.0 * minutes - progress.seconds, 0.0)
        planned = torch.tensor([progress.step + max(int(rate * left), 1)], dtype=torch.float64)
        everyones: Any = self.accelerator.reduce(planned.to(self.accelerator.device), "mean")
        progress.total_steps = int(everyones.item())

    def _validate(self, held_out: Windows) -> dict[str, float]:
        """Loss of the averaged weights on held-out windows, with the same draws each time.

        Nothing where the policy breaks down on them: the training itself may still be sound.
        """
        size, count = self.config.batch_size, len(held_out)
        losses = []
        # Batches as in training, gradients on: a compiled loss then needs no other graph.
        with torch.random.fork_rng(), self.averaged_weights():
            torch.manual_seed(self.seed)
            for start in range(0, count, size):
                index = torch.arange(start, start + size) % count
                batch = self.policy.draw(held_out.gather(index))
                try:
                    losses.append(float(self.policy(batch)[0].detach()))
                except FloatingPointError:
                    return {}
        mean = sum(losses) / len(losses)
        return {"validation_loss": mean} if math.isfinite(mean) else {}

    def _rollout(self, step: int) -> None:
        if self.rollout is None:
            return
        # Rollouts draw from generators of their own; training goes on with the same numbers.
        with self.averaged_weights():
            self.policy.eval()
            values = self.rollout(self.policy)
            self.policy.train()
        if self.log is not None:
            self.log.write(step=step, **values)


class _Averaged:
    def __init__(self, ema: EMAModel, policy: Policy) -> None:
        self.ema, self.policy = ema, policy

    def __enter__(self) -> Policy:
        self.ema.store(self.policy.parameters())
        self.ema.copy_to(self.policy.parameters())
        return self.policy

    def __exit__(self, *error: object) -> None:
        self.ema.restore(self.policy.parameters())


def _not_finite(where: str, last: Path | None) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"the loss is not finite {where}; the last good checkpoint is {last or 'none yet'}; train "
        "again with a lower train.lr and another run_dir."
    )


def _part(batch: dict[str, Any], index: int, count: int) -> dict[str, Any]:
    """The part of a global batch that belongs to one of several processes.

    All parts are equally long, as averaging their gradients asks for; replayed rows that do not
    divide evenly are left out.
    """

    def part(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: part(v) for k, v in value.items()}
        if not isinstance(value, Tensor):
            return value
        rows = len(value) // count
        return value[index * rows : (index + 1) * rows]

    return batch if count == 1 else part(batch)
