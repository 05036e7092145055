"""The trainer of all models.

A step gathers a batch, draws its randomness and computes the gradient of the loss. It clips the
gradient, updates the weights with AdamW and updates their average. The batch and its randomness
depend only on the seed and the step number. So a resumed run equals an uninterrupted one, bit for
bit on the CPU, and several processes equal one.

Every process gathers the *global* batch, draws its randomness and trains on its own slice. This is
cheap, because the data is resident on the device.
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
from ebt_policy.training.log_window import LogWindow
from ebt_policy.training.progress import TrainingProgress
from ebt_policy.training.schedule import Progress, learning_rate_factor, plan_total_steps

VALIDATION_ROWS = 1024  # largest number of held-out rows on which the loss is measured


class NonFiniteLoss(UserError, RuntimeError):
    """A loss, gradient or weight that is NaN or infinite."""


class Trainer:
    """The training of one model in a run folder.

    Args:
        model: untrained model.
        train_data: data to train on.
        config: see `TrainConfig`.
        run_dir: folder for ``checkpoints/``.
        seed: seed of batches and noise.
        accelerator: device, precision and processes.
        validation_data: held-out data; its loss is logged at each checkpoint.
        log: metric log of the main process.
        on_checkpoint: called in the main process after each checkpoint.
        validate: returns metrics of the averaged model, which are logged. Only the main process
            calls it, every ``train.eval_every`` steps.

    Raises:
        ConfigError: if the batch size does not fit the data or the number of processes.
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
        on_checkpoint: Callable[[], None] = lambda: None,
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
        self.on_checkpoint = on_checkpoint
        self.progress = Progress(total_steps=config.steps)
        # Every process draws the same random numbers, because they belong to the global batch.
        set_seed(seed)
        optimizer = torch.optim.AdamW(
            model.parameter_groups(config.lr, config.weight_decay),
            betas=(0.9, 0.95),
            fused=accelerator.device.type == "cuda" or None,  # one launch for all parameters
        )
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.is_compiled = config.compile and can_compile(accelerator.device)
        if self.is_compiled:
            model.compile_training()
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = weight_average(model, config.ema_power)

    # -- state ------------------------------------------------------------------------------

    def resume(self) -> int | None:
        """Load the newest checkpoint of the run folder; return its step, or None without one.

        Raises:
            CheckpointError: if the trainer state is damaged, or belongs to another network or
                optimizer.
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
        """Write a checkpoint of the current step in the main process; return its folder.

        Raises:
            NonFiniteLoss: if the averaged weights contain NaN or infinity.
            OSError: if it cannot be written.
        """
        scaler = self.accelerator.scaler
        state = {
            # A copy, because the model has its averaged weights while it is written.
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
        """Make one update and return its metrics."""
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
            # The replay buffer belongs to the global batch, too.
            rows = {key: batch[key] for key in self.model.keys}
            everyones: Any = self.accelerator.gather({**rows, "candidate": candidate})
            self.model.after_step(everyones)
        self.progress.step += 1
        return {"loss": loss.detach(), "grad_norm_weights": norm, **metrics}

    def fit(self) -> None:
        """Train to the last step, with a progress bar, logs, validation and checkpoints.

        The first Ctrl-C or SIGTERM saves a checkpoint and stops. Several processes do this together
        at the next log line.

        Raises:
            NonFiniteLoss: if a loss, gradient or weight is not finite; the message names the step
                and the last good checkpoint.
            KeyboardInterrupt: after an interruption; the message names the saved checkpoint.
            OSError: if a checkpoint or the log cannot be written.
        """
        config, progress, main = self.config, self.progress, self.accelerator.is_main_process
        if progress.total_steps is not None and progress.step >= progress.total_steps:
            return
        self.model.train()
        last = newest_checkpoint(self.run_dir)
        window = LogWindow(
            progress.step,
            self.accelerator.device,
            # A gradient that is not finite corrupts the weights; a scaler skips such a step.
            check_gradients=self.accelerator.scaler is None,
        )
        single_process, stopping = self.accelerator.num_processes == 1, False
        compiling = self.is_compiled
        with (
            TrainingProgress(
                progress, enabled=main, phase="compiling" if compiling else "training"
            ) as bar,
            DeferredInterruption() as interruption,
        ):
            while progress.total_steps is None or progress.step < progress.total_steps:
                try:
                    metrics = self.train_step()
                except FloatingPointError as error:  # raised by the descent in eager mode
                    raise _not_finite(progress.step + 1, last) from error
                step = progress.step
                window.add(step, metrics)
                if compiling:  # which happens in the first step of a process
                    compiling = False
                    window.restart_clock(step)
                    bar.show_phase("training")
                ending = step == progress.total_steps
                stopping = single_process and interruption.received is not None
                log_now = ending or stopping or step % config.log_every == 0
                save_due = ending or step % config.checkpoint_every == 0
                values: dict[str, float] = {}
                if (log_now or save_due) and window.bad_step:
                    raise _not_finite(window.bad_step, last)
                if log_now:
                    values, stopping = self._log_values(window, metrics, interruption)
                    bar.update(values["loss"], values["steps_per_second"])
                paused = time.perf_counter()
                if save_due and main and self.validation_data is not None:
                    values |= self._validation_loss(self.validation_data)
                # Before the checkpoint: a resumed run does not write earlier log lines again.
                if values and self.log is not None:
                    self.log.write(step=step, **values)
                if (save_due or stopping) and main:
                    last = self.save()
                    self.on_checkpoint()
                if stopping and not ending:
                    raise interruption.error(
                        f"saved step {step:,} in {last or self.run_dir}; run the same command with "
                        "resume=true to resume"
                    )
                if config.eval_every and step % config.eval_every == 0 and not ending:
                    self._log_validation(step)
                window.exclude(time.perf_counter() - paused)
        self.accelerator.wait_for_everyone()

    def _log_values(
        self, window: LogWindow, metrics: dict[str, Tensor], interruption: DeferredInterruption
    ) -> tuple[dict[str, float], bool]:
        """Return the values of a log line and whether to stop; plan the total number of steps.

        Loss, time and interruption are averaged over processes, because all processes must plan the
        same number of steps and stop at the same step.
        """
        progress = self.progress
        step, timed_steps = progress.step, window.timed_steps(progress.step)
        interrupted = float(interruption.received is not None)
        local_values = [window.mean_loss(step), window.seconds, interrupted]
        window.restart(step)
        shared: Any = self.accelerator.reduce(
            torch.tensor(local_values, device=self.accelerator.device), "mean"
        )
        loss, seconds, interrupted = shared.tolist()
        progress.seconds += seconds
        rate = timed_steps / seconds
        if timed_steps:
            plan_total_steps(progress, self.config, rate)
        values = {k: float(v) for k, v in metrics.items() if v.numel() == 1}
        values |= {"loss": loss, "lr": self.optimizer.param_groups[0]["lr"]}
        values |= {"steps_per_second": rate, "seconds": progress.seconds}
        return values, interrupted > 0

    def _validation_loss(self, data: TrainingData) -> dict[str, float]:
        """Return the loss of the averaged weights on held-out data, with the same noise each time.

        At most `VALIDATION_ROWS` evenly spaced rows are used. The result is empty if the loss is
        not finite, because the training itself may still succeed.
        """
        size, count = self.config.batch_size, min(len(data), VALIDATION_ROWS)
        chosen = torch.linspace(0, len(data) - 1, count).long()
        losses = []
        # With the batch size and the gradient mode of training, a single process compiles no other
        # graph.
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
        # Validation has its own generators, so it does not change the random numbers of training.
        with averaged_weights(self.model, self.ema):
            self.model.eval()
            values = self.validate(self.model)
            self.model.train()
        if values and self.log is not None:
            self.log.write(step=step, **values)


def _not_finite(step: int, last: Path | None) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"the loss, its gradient or the weights are not finite in step {step} (last good "
        f"checkpoint: {last or 'none yet'}); train again with a lower train.lr and another "
        "run_dir."
    )
