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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from rich.console import Console
from torch import Tensor

from ebt_policy.errors import ConfigError, UserError
from ebt_policy.io.interruption import DeferredInterruption
from ebt_policy.models.base import Model
from ebt_policy.training.checkpoint import (
    load_trainer_state,
    newest_checkpoint,
    save_checkpoint,
    unusable,
)
from ebt_policy.training.log import MetricLog
from ebt_policy.training.progress import TrainingProgress

VALIDATED = 1024  # held-out windows whose loss is logged, at most


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Args:
        steps: updates to make; or
        minutes: time to train for (rollouts, validation and saving not counted), turned into a
            number of steps when the warm-up or a tenth of it is over and adjusted until half of
            it is used. Exactly one of the two is set.
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
        for name in ("weight_decay", "rollout_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} must be at least 0, got {getattr(self, name)}.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ConfigError(
                f"train.mixed_precision must be no, bf16 or fp16, got {self.mixed_precision}."
            )


class Data(Protocol):
    """What batches are gathered from."""

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """The rows of some indices, as `Model.normalize` takes them."""
        ...


class NonFiniteLoss(UserError, RuntimeError):
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
    """Trains a model in a run folder.

    Args:
        model: untrained.
        data: to train on.
        config: see `TrainConfig`.
        run_dir: gets ``checkpoints/`` and ``log.jsonl``.
        seed: of batches and draws.
        accelerator: device, precision and processes.
        validation: held-out data; its loss is logged at each checkpoint.
        log: metric log of the main process.
        rollout: tries the model out, say plays a few episodes, and returns metrics to log.
    """

    def __init__(
        self,
        model: Model,
        data: Data,
        config: TrainConfig,
        run_dir: Path,
        *,
        seed: int,
        accelerator: Accelerator,
        validation: Data | None = None,
        log: MetricLog | None = None,
        rollout: Callable[[Any], dict[str, float]] | None = None,
    ) -> None:
        processes = accelerator.num_processes
        if config.batch_size % processes:
            raise ConfigError(
                f"train.batch_size={config.batch_size} must be a multiple of the "
                f"{processes} processes."
            )
        if len(data) < config.batch_size:
            raise ConfigError(
                f"there are {len(data)} training windows, fewer than "
                f"train.batch_size={config.batch_size}; lower it."
            )
        self.model, self.data, self.config = model, data, config
        self.run_dir, self.seed, self.accelerator = run_dir, seed, accelerator
        self.validation, self.log, self.rollout = validation, log, rollout
        self.progress = Progress(total_steps=config.steps)
        self._order: tuple[int, Tensor] | None = None  # of the present epoch, and its seed
        # Every process draws the same random numbers: they belong to the global batch.
        set_seed(seed)
        optimizer = torch.optim.AdamW(
            model.parameter_groups(config.lr, config.weight_decay),
            betas=(0.9, 0.95),
            fused=accelerator.device.type == "cuda" or None,  # one launch for all parameters
        )
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        quiet = not accelerator.is_main_process
        if config.compile and can_compile(accelerator.device, quiet=quiet):
            model.compile()
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = EMAModel(
            model.parameters(), use_ema_warmup=True, power=config.ema_power, foreach=True
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
        with self.averaged_weights():
            if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
                raise _not_finite(self.progress.step, newest_checkpoint(self.run_dir))
            return save_checkpoint(self.run_dir, self.progress.step, self.model, state)

    def averaged_weights(self) -> _Averaged:
        """Within this context the model has its averaged weights."""
        return _Averaged(self.ema, self.model)

    # -- training ---------------------------------------------------------------------------

    def batch(self, step: int) -> dict[str, Any]:
        """Global batch of a step: epochs without replacement, each in an order of its own."""
        size, count = self.config.batch_size, len(self.data)
        per_epoch = count // size
        epoch, place = divmod(step, per_epoch)
        seed = self.seed * 1_000_003 + epoch
        if self._order is None or self._order[0] != seed:  # of long texts it takes a while
            order = torch.Generator().manual_seed(seed)
            self._order = seed, torch.randperm(count, generator=order)
        index = self._order[1][place * size : (place + 1) * size]
        return self.model.normalize(self.data.gather(index))

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
        batch = self.model.draw(self.model.before_step(self.batch(self.progress.step)))
        batch = _part(batch, self.accelerator.process_index, self.accelerator.num_processes)
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
        alone, stopping = self.accelerator.num_processes == 1, False
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
                stopping = alone and interruption.received is not None
                log_now = ending or stopping or step % config.log_every == 0
                save_due = ending or step % config.checkpoint_every == 0
                values: dict[str, float] = {}
                if (log_now or save_due) and int(bad_step):
                    raise _not_finite(int(bad_step), last)
                if log_now:
                    now = time.perf_counter()
                    # The mean over processes: all must plan the same number of steps, and stop at
                    # the same one.
                    asked = float(interruption.received is not None)
                    mine = [float(sum_loss) / (step - mark_step), now - mark, asked]
                    shared: Any = self.accelerator.reduce(torch.tensor(mine, device=device), "mean")
                    mean, seconds, asked = shared.tolist()
                    stopping = asked > 0
                    progress.seconds += seconds
                    rate = (step - mark_step) / seconds
                    mark, mark_step, sum_loss = now, step, torch.zeros_like(sum_loss)
                    self._plan(rate)
                    values = {k: float(v) for k, v in metrics.items() if v.numel() == 1}
                    values |= {"loss": mean, "lr": self.optimizer.param_groups[0]["lr"]}
                    values |= {"steps_per_second": rate, "seconds": progress.seconds}
                    bar.update(mean, rate)
                paused = time.perf_counter()
                if save_due and main and self.validation is not None:
                    values |= self._validate(self.validation)
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
                if config.rollout_every and step % config.rollout_every == 0 and not ending:
                    self._rollout(step)
                mark += time.perf_counter() - paused  # not training time
        self.accelerator.wait_for_everyone()

    def _plan(self, rate: float) -> None:
        """Turn the budget of minutes into a number of steps.

        Planned when the warm-up ends (compiling is over by then), or with a tenth of the budget
        used, and again at each log line until half of it is used, as machines slow down and speed
        up; from there on it is fixed. One such line there always is: where compiling takes most of
        the first half, the first plan knows nothing of the speed after it.
        """
        progress, minutes = self.progress, self.config.minutes
        if minutes is None:
            return
        budget = 60.0 * minutes
        warm = progress.step >= self.config.warmup_steps or progress.seconds > 0.1 * budget
        if progress.total_steps is None:
            if not warm:
                return
            progress.warm_step, progress.warm_seconds = progress.step, progress.seconds
        elif progress.seconds >= budget or (
            progress.seconds > 0.5 * budget
            and progress.step - progress.warm_step > self.config.log_every
        ):
            return
        else:  # the mean since then: one log line's rate is too noisy to plan by
            rate = (progress.step - progress.warm_step) / (progress.seconds - progress.warm_seconds)
        left = max(budget - progress.seconds, 0.0)
        progress.total_steps = progress.step + max(int(rate * left), 1)

    def _validate(self, held_out: Data) -> dict[str, float]:
        """Loss of the averaged weights on held-out windows, with the same draws each time.

        On `VALIDATED` of them, evenly spread, where there are more.

        Nothing where the model breaks down on them: the training itself may still be sound.
        """
        size, count = self.config.batch_size, min(len(held_out), VALIDATED)
        chosen = torch.linspace(0, len(held_out) - 1, count).long()
        losses = []
        # Batches as in training, gradients on: a single process then needs no other graph.
        with torch.random.fork_rng(), self.averaged_weights():
            torch.manual_seed(self.seed)
            for start in range(0, count, size):
                index = chosen[torch.arange(start, start + size) % count]
                batch = self.model.draw(self.model.normalize(held_out.gather(index)))
                try:
                    losses.append(float(self.model(batch)[0].detach()))
                except FloatingPointError:
                    return {}
        mean = sum(losses) / len(losses)
        return {"validation_loss": mean} if math.isfinite(mean) else {}

    def _rollout(self, step: int) -> None:
        if self.rollout is None or not self.accelerator.is_main_process:
            return
        # Rollouts draw from generators of their own; training goes on with the same numbers.
        with self.averaged_weights():
            self.model.eval()
            values = self.rollout(self.model)
            self.model.train()
        if values and self.log is not None:
            self.log.write(step=step, **values)


class _Averaged:
    def __init__(self, ema: EMAModel, model: Model) -> None:
        self.ema, self.model = ema, model

    def __enter__(self) -> Model:
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        return self.model

    def __exit__(self, *error: object) -> None:
        self.ema.restore(self.model.parameters())


def can_compile(device: torch.device, *, quiet: bool = False) -> bool:
    """Return whether `torch.compile` works here; if not, print what is missing unless ``quiet``."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except (RuntimeError, OSError) as error:  # say, no C++ compiler or no headers of Python
        reason = str(error).strip().splitlines()[0]
        if not quiet:
            Console(stderr=True).print(
                f"torch.compile does not work here ({reason}): training goes on without it, "
                "slower.",
                markup=False,
            )
        return False
    return True


def _not_finite(step: int, last: Path | None) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"the loss, its gradient or the weights are not finite in step {step}; the last good "
        f"checkpoint is {last or 'none yet'}; train again with a lower train.lr and another "
        "run_dir."
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
