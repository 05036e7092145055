"""The trainer, one for every model.

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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from ebt_policy.errors import ConfigError, UserError
from ebt_policy.io.interruption import DeferredInterruption
from ebt_policy.models.base import Model
from ebt_policy.training.averaging import averaged_weights, weight_average
from ebt_policy.training.batches import BatchSampler, TrainingData, process_slice
from ebt_policy.training.checkpoint import (
    load_trainer_state,
    newest_checkpoint,
    save_checkpoint,
    unusable,
)
from ebt_policy.training.compilation import can_compile
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.log import MetricLog
from ebt_policy.training.progress import TrainingProgress
from ebt_policy.training.schedule import Progress, learning_rate_factor, plan_total_steps

VALIDATION_ROWS = 1024  # held-out rows whose loss is logged, at most


class NonFiniteLoss(UserError, RuntimeError):
    """A loss, gradient or weight that is NaN or infinite."""


class Trainer:
    """Trains a model in a run folder.

    Args:
        model: untrained.
        train_data: to train on.
        config: see `TrainConfig`.
        run_dir: gets ``checkpoints/`` and ``log.jsonl``.
        seed: of batches and draws.
        accelerator: device, precision and processes.
        validation_data: held-out data; its loss is logged at each checkpoint.
        log: metric log of the main process.
        validate: returns metrics of the averaged model to log, every ``train.eval_every`` steps;
            called by the main process alone.

    Raises:
        ConfigError: the batch size does not fit the data or the number of processes.
    """

    def __init__(
        self,
        model: Model,
        train_data: TrainingData,
        config: TrainConfig,
        run_dir: Path,
        *,
        seed: int,
        accelerator: Accelerator,
        validation_data: TrainingData | None = None,
        log: MetricLog | None = None,
        validate: Callable[[Any], dict[str, float]] | None = None,
    ) -> None:
        processes = accelerator.num_processes
        if config.batch_size % processes:
            raise ConfigError(
                f"train.batch_size={config.batch_size} must be a multiple of the "
                f"{processes} processes."
            )
        self.model, self.config = model, config
        self.sampler = BatchSampler(train_data, config.batch_size, seed)
        self.run_dir, self.seed, self.accelerator = run_dir, seed, accelerator
        self.validation_data, self.log, self.validate = validation_data, log, validate
        self.progress = Progress(total_steps=config.steps)
        # Every process draws the same random numbers: they belong to the global batch.
        set_seed(seed)
        optimizer = torch.optim.AdamW(
            model.parameter_groups(config.lr, config.weight_decay),
            betas=(0.9, 0.95),
            fused=accelerator.device.type == "cuda" or None,  # one launch for all parameters
        )
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        if config.compile and can_compile(accelerator.device):
            model.compile()
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = weight_average(model, config.ema_power)

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
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(device=self.accelerator.device)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.model.load_extra_training_state(state["extra"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])

    def save(self) -> Path:
        """Write a checkpoint of the present step (main process).

        Raises:
            NonFiniteLoss: the averaged weights hold NaN or infinity.
            OSError: it cannot be written.
        """
        scaler = self.accelerator.scaler
        state = {
            # A copy: the model itself takes its averaged weights while it is written.
            "model": {k: v.clone() for k, v in self.model.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "extra": self.model.extra_training_state(),
            "progress": asdict(self.progress),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        self.model.config["trained"] = {
            "steps": self.progress.step,
            "seconds": round(self.progress.seconds, 1),
            "device": self.accelerator.device.type,
            "processes": self.accelerator.num_processes,
        }
        with averaged_weights(self.model, self.ema):
            if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
                raise _not_finite(self.progress.step, newest_checkpoint(self.run_dir))
            return save_checkpoint(self.run_dir, self.progress.step, self.model, state)

    # -- training ---------------------------------------------------------------------------

    def batch(self, step: int) -> dict[str, Any]:
        """Return the normalised global batch of a step."""
        return self.model.normalize(self.sampler.batch(step))

    def train_step(self) -> dict[str, Tensor]:
        """One update; returns metrics."""
        step, total = self.progress.step, self.progress.total_steps
        factor = learning_rate_factor(step, total, self.config.warmup_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        batch = self.model.with_noise(self.model.before_step(self.batch(step)))
        batch = process_slice(batch, self.accelerator.process_index, self.accelerator.num_processes)
        loss, metrics = self.wrapped(batch)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        assert norm is not None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        candidate = metrics.pop("candidate", None)
        if candidate is not None:
            # The replay buffer, too, belongs to the global batch.
            rows = {key: batch[key] for key in self.model.keys}
            everyones: Any = self.accelerator.gather({**rows, "candidate": candidate})
            self.model.after_step(everyones)
        self.progress.step += 1
        return {"loss": loss.detach(), "grad_norm_weights": norm, **metrics}

    def fit(self) -> None:
        """Train to the end, with progress, logs, rollouts and checkpoints.

        The first Ctrl-C or SIGTERM saves a checkpoint; several processes agree on it at a log line.

        Raises:
            NonFiniteLoss: naming the step and the last good checkpoint.
            KeyboardInterrupt: naming the checkpoint to resume from.
            OSError: a checkpoint or the log cannot be written.
        """
        config, progress, main = self.config, self.progress, self.accelerator.is_main_process
        done = progress.step
        if progress.total_steps is not None and done >= progress.total_steps:
            return
        self.model.train()
        last = newest_checkpoint(self.run_dir)
        device = self.accelerator.device
        mark, mark_step = time.perf_counter(), progress.step
        sum_loss = torch.zeros((), device=device)
        bad_step = torch.zeros((), device=device, dtype=torch.long)
        single_process, stopping = self.accelerator.num_processes == 1, False
        with (
            TrainingProgress(progress, enabled=main) as bar,
            DeferredInterruption() as interruption,
        ):
            while progress.total_steps is None or progress.step < progress.total_steps:
                try:
                    metrics = self.train_step()
                except FloatingPointError as error:  # the descent's own check, in eager mode
                    raise _not_finite(progress.step + 1, last) from error
                step = progress.step
                sum_loss = sum_loss + metrics["loss"]
                # Noted on the device, where asking at each step would make it wait. A bad gradient
                # spoils the weights, too, but with a scaler it is no fault: such a step is skipped.
                fine = metrics["loss"].isfinite()
                if self.accelerator.scaler is None:
                    fine = fine & metrics["grad_norm_weights"].isfinite()
                bad_step = torch.where((bad_step == 0) & ~fine, step, bad_step)
                ending = step == progress.total_steps
                stopping = single_process and interruption.received is not None
                log_now = ending or stopping or step % config.log_every == 0
                save_due = ending or step % config.checkpoint_every == 0
                values: dict[str, float] = {}
                if (log_now or save_due) and int(bad_step):
                    raise _not_finite(int(bad_step), last)
                if log_now:
                    now = time.perf_counter()
                    # The mean over processes: all must plan the same number of steps, and stop at
                    # the same one.
                    interrupted = float(interruption.received is not None)
                    local_values = [float(sum_loss) / (step - mark_step), now - mark, interrupted]
                    shared: Any = self.accelerator.reduce(
                        torch.tensor(local_values, device=device), "mean"
                    )
                    mean, seconds, interrupted = shared.tolist()
                    stopping = interrupted > 0
                    progress.seconds += seconds
                    rate = (step - mark_step) / seconds
                    mark, mark_step, sum_loss = now, step, torch.zeros_like(sum_loss)
                    plan_total_steps(progress, config, rate)
                    values = {k: float(v) for k, v in metrics.items() if v.numel() == 1}
                    values |= {"loss": mean, "lr": self.optimizer.param_groups[0]["lr"]}
                    values |= {"steps_per_second": rate, "seconds": progress.seconds}
                    bar.update(mean, rate)
                paused = time.perf_counter()
                if save_due and main and self.validation_data is not None:
                    values |= self._validation_loss(self.validation_data)
                # First, as a run that resumes at a checkpoint writes no line up to it again.
                if values and self.log is not None:
                    self.log.write(step=step, **values)
                if (save_due or stopping) and main:
                    last = self.save()
                if stopping and not ending:
                    raise interruption.error(
                        f"saved step {step:,} in {last or self.run_dir}; run the same command with "
                        "resume=true to resume"
                    )
                if config.eval_every and step % config.eval_every == 0 and not ending:
                    self._log_validation(step)
                mark += time.perf_counter() - paused  # not training time
        self.accelerator.wait_for_everyone()

    def _validation_loss(self, data: TrainingData) -> dict[str, float]:
        """Loss of the averaged weights on held-out windows, with the same draws each time.

        On `VALIDATION_ROWS` of them, evenly spread, where there are more.

        Nothing where the model breaks down on them: the training itself may still be sound.
        """
        size, count = self.config.batch_size, min(len(data), VALIDATION_ROWS)
        chosen = torch.linspace(0, len(data) - 1, count).long()
        losses = []
        # Batches as in training, gradients on: a single process then needs no other graph.
        with torch.random.fork_rng(), averaged_weights(self.model, self.ema):
            torch.manual_seed(self.seed)
            for start in range(0, count, size):
                index = chosen[torch.arange(start, start + size) % count]
                batch = self.model.with_noise(self.model.normalize(data.gather(index)))
                try:
                    losses.append(float(self.model(batch)[0].detach()))
                except FloatingPointError:
                    return {}
        mean = sum(losses) / len(losses)
        return {"validation_loss": mean} if math.isfinite(mean) else {}

    def _log_validation(self, step: int) -> None:
        if self.validate is None or not self.accelerator.is_main_process:
            return
        # It draws from generators of its own; training continues with the same numbers.
        with averaged_weights(self.model, self.ema):
            self.model.eval()
            values = self.validate(self.model)
            self.model.train()
        if values and self.log is not None:
            self.log.write(step=step, **values)


def _not_finite(step: int, last: Path | None) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"the loss, its gradient or the weights are not finite in step {step}; the last good "
        f"checkpoint is {last or 'none yet'}; train again with a lower train.lr and another "
        "run_dir."
    )
