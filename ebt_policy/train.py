"""Train: ``python -m ebt_policy.train task=push_t [model=ebt objective=flow ...]``.

Builds the task and the model from configuration, hands them to the trainer, and evaluates the
result. Every option is in ``configs/train.yaml`` and the groups beside it; ``configs/domain``
has the defaults of policies, text, images and video.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from ebt_policy.cli import hydra_arguments, pick_device, report_errors
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.io.output import check_free_space, output_folder, write_atomic
from ebt_policy.io.paths import reason
from ebt_policy.policies.task import PolicyTrainingTask
from ebt_policy.renamed_options import with_new_names
from ebt_policy.training.checkpoint import newest_checkpoint
from ebt_policy.training.log import MetricLog, check_mode
from ebt_policy.training.processes import devices, join_processes
from ebt_policy.training.task import TrainingTask
from ebt_policy.training.trainer import TrainConfig, Trainer

console = Console()

# Settings that may change when a run goes on: what it learns stays the same, but for rounding.
FREE = ("checkpoint_every", "rollout_every", "log_every", "compile", "inference")
_ABSENT = object()
# Bytes a parameter: weights, their average, two moments of AdamW, in three checkpoints (two are
# kept, and one is being written).
CHECKPOINTS = 3 * 16


@dataclass(frozen=True)
class RunConfig:
    """The sections of ``configs/train.yaml``, which says what they are for."""

    domain: str
    task: dict[str, Any]
    model: dict[str, Any]
    objective: dict[str, Any] | None
    size: dict[str, Any]
    seed: int
    run_dir: str
    resume: bool
    device: str
    wandb: str
    train: dict[str, Any]
    evaluation: dict[str, Any]
    vision: dict[str, Any] | None = None


def train(config: dict[str, Any]) -> Path:
    """Train, evaluate and report; returns the run folder.

    Args:
        config: resolved content of ``configs/train.yaml``, or that of another kind of task.

    Raises:
        ConfigError, EpisodeError, TextError, CheckpointError: before any long work starts.
        NonFiniteLoss: with the step and the last good checkpoint.
    """
    run = options(RunConfig, config, "the configuration")
    if not 0 <= run.seed < 1 << 32:
        raise ConfigError(f"seed must be from 0 to {(1 << 32) - 1}, got {run.seed}.")
    train_config = options(TrainConfig, run.train, "train")
    job = job_of(config, train_config)
    check_mode(run.wandb)
    device = pick_device(run.device)
    accelerator = join_processes(device, train_config.mixed_precision)
    run_dir = Path(run.run_dir)
    with output_folder(run_dir, "run_dir") if accelerator.is_main_process else nullcontext():
        _check_same_run(run_dir, config)
        _train(run, run_dir, config, job, train_config, accelerator)
    return run_dir


def _train(
    run: RunConfig, run_dir: Path, config: dict[str, Any], job: TrainingTask,
    train_config: TrainConfig, accelerator: Accelerator,
) -> None:  # fmt: skip
    main = accelerator.is_main_process
    with accelerator.main_process_first():  # one downloads what all read
        note = job.fetch()
    if main:
        console.print(note, markup=False)
    if (first := job.first()) is not None:
        train(first)
    built = job.build(accelerator.device)
    if main:
        model = built.model
        console.print(
            f"{model.name}, {model.parameter_count:,} parameters, {built.note}, on "
            f"{devices(accelerator)}, in {run_dir}",
            markup=False,
        )
    trainer = Trainer(
        built.model, built.data, train_config, run_dir,
        seed=run.seed, accelerator=accelerator, validation=built.held_out,
        rollout=job.tryout if main and job.tries_out else None,
    )  # fmt: skip
    resumed = trainer.resume() if run.resume else None
    if main:
        check_free_space(run_dir, CHECKPOINTS * built.model.parameter_count, "run_dir")
        write_atomic(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        trainer.log = MetricLog(run_dir, wandb=run.wandb, config=config, resume_step=resumed)
        if resumed is not None:
            console.print(f"resumed at step {resumed:,}")
    try:
        trainer.fit()
    finally:
        if trainer.log is not None:
            trainer.log.close()
    if main:
        command = " ".join(["python -m ebt_policy.train", *_original])
        job.evaluate(run_dir, accelerator.device, command)


def job_of(config: dict[str, Any], train: TrainConfig) -> TrainingTask:
    """What a configuration says is to be trained."""
    if config["domain"] == "text":
        from ebt_policy.language.task import (
            TextTrainingTask,  # asks for libraries that robots do not
        )

        return TextTrainingTask(config, train)
    if config["domain"] == "image":
        from ebt_policy.image.task import ImageTrainingTask

        return ImageTrainingTask(config, train)
    if config["domain"] == "video":
        from ebt_policy.video.task import VideoTrainingTask

        return VideoTrainingTask(config, train)
    return PolicyTrainingTask(config, train)


def _differing(before: Any, now: Any) -> list[str]:
    """Keys of a section whose values differ; for a section that is one value, that it does."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [""]
    keys = {**before, **now}
    return [key for key in keys if before.get(key, _ABSENT) != now.get(key, _ABSENT)]


def _check_same_run(run_dir: Path, config: dict[str, Any]) -> None:
    """Refuse a folder that holds a run, unless it is to be resumed with the same settings.

    Raises:
        ConfigError: naming the settings that differ.
    """
    stored = run_dir / "config.yaml"
    if newest_checkpoint(run_dir) is None:
        return
    if not config["resume"]:
        raise ConfigError(
            f"{run_dir} already holds a run: add resume=true to resume it, or give another "
            "run_dir=..."
        )
    try:
        before: Any = OmegaConf.to_container(OmegaConf.load(stored))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{stored} cannot be read ({reason(error)}), so the run cannot be resumed with its "
            "settings; give another run_dir=..."
        ) from error
    if not isinstance(before, dict):
        raise ConfigError(f"{stored} holds no settings of a run; give another run_dir=...")
    before = with_new_names(before)
    changed = [
        f"{section}.{key}".rstrip(".")
        for section in ("task", "model", "objective", "size", "vision", "seed", "train")
        for key in _differing(before.get(section), config.get(section))
        if key not in FREE
    ]
    if changed:
        raise ConfigError(
            f"{run_dir} was trained with other settings of {', '.join(changed)} (see its "
            "config.yaml); give another run_dir=... for the new ones."
        )


_original: list[str] = []


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="train")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        config = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(config, dict)
        train(drop_unused_sections(config, HydraConfig.get().overrides.task))


def drop_unused_sections(config: dict[Any, Any], overridden: Sequence[str] = ()) -> dict[str, Any]:
    """A composed configuration without the sections that its model and task have no use for.

    Raises:
        ConfigError: such a section was asked for.
    """
    unused = []
    if config["model"]["name"] not in ("ebt", "refiner", "masked_ebt"):
        unused.append(("objective", "models that descend"))
    if "vision" in config and not config["task"].get("cameras"):
        unused.append(("vision", "tasks with cameras"))
    for section, whose in unused:
        if any(o.startswith(section) for o in overridden):
            raise ConfigError(f"{section}=... belongs to {whose}; leave it out.")
    return {str(k): None if k in dict(unused) else v for k, v in config.items()}


def main() -> None:
    _original[:] = sys.argv[1:]
    with report_errors():
        sys.argv[1:] = hydra_arguments(sys.argv[1:])
    _main()


if __name__ == "__main__":
    # As a module with a name, in which hydra's launchers find what other processes are to run.
    from ebt_policy import train as named

    named.main()
