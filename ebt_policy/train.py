"""Train: ``python -m ebt_policy.train task=push_t [model=ebt objective=flow ...]``.

Builds the task and the model from configuration, hands them to the trainer, and evaluates the
result. Every option is in ``configs/train.yaml`` and the groups beside it; ``configs/domain``
has the defaults of policies, text, images and video.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ebt_policy.cli import command_line, pick_device, report_errors, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.models.energy_model import EnergyModel
from ebt_policy.training.config import RunConfig, TrainConfig
from ebt_policy.training.log import MetricLog, check_mode
from ebt_policy.training.processes import devices, join_processes
from ebt_policy.training.run_folder import prepare_run_dir, save_run_config
from ebt_policy.training.task import TASKS
from ebt_policy.training.trainer import Trainer

console = Console()

# Imported when they are trained: each domain needs libraries that the others do not.
TASKS.declare("policy", "ebt_policy.policies.task:PolicyTrainingTask")
TASKS.declare("text", "ebt_policy.language.task:TextTrainingTask")
TASKS.declare("image", "ebt_policy.image.task:ImageTrainingTask")
TASKS.declare("video", "ebt_policy.video.task:VideoTrainingTask")


def train(config: dict[str, Any]) -> Path:
    """Train, evaluate and report; return the run folder.

    Args:
        config: resolved content of ``configs/train.yaml``.

    Raises:
        ConfigError, EpisodeError, TextError, CheckpointError: before any long work starts.
        NonFiniteLoss: with the step and the last good checkpoint.
    """
    run = options(RunConfig, config, "the configuration")
    train_config = options(TrainConfig, run.train, "train")
    task = TASKS.get(run.domain)(config, train_config)
    check_mode(run.wandb)
    accelerator = join_processes(pick_device(run.device), train_config.mixed_precision)
    is_main, run_dir = accelerator.is_main_process, Path(run.run_dir)
    with prepare_run_dir(run_dir, config, is_main=is_main):
        with accelerator.main_process_first():  # one downloads what all read
            data = task.load_data()
        if is_main:
            console.print(task.describe(data), markup=False)
        if (prerequisite := task.prerequisite(data)) is not None:
            train(prerequisite)
        setup = task.build(data, accelerator.device)
        model = setup.model
        if is_main:
            console.print(
                f"{model.name}, {model.parameter_count:,} parameters, {setup.note}, on "
                f"{devices(accelerator)}, in {run_dir}",
                markup=False,
            )
        trainer = Trainer(
            model, setup.train_data, train_config, run_dir,
            seed=run.seed, accelerator=accelerator, validation_data=setup.validation_data,
            validate=setup.validate,
        )  # fmt: skip
        resumed = trainer.resume() if run.resume else None
        if is_main:
            save_run_config(run_dir, config, model.parameter_count)
            trainer.log = MetricLog(run_dir, wandb=run.wandb, config=config, resume_step=resumed)
            if resumed is not None:
                console.print(f"resumed at step {resumed:,}")
        try:
            trainer.fit()
        finally:
            if trainer.log is not None:
                trainer.log.close()
        if is_main:
            task.evaluate(data, run_dir, accelerator.device, command_line("ebt_policy.train"))
    return run_dir


def drop_unused_sections(config: dict[Any, Any], overridden: Sequence[str] = ()) -> dict[str, Any]:
    """Return a composed configuration without the sections that its model and task do not use.

    Args:
        overridden: the overrides of the command line.

    Raises:
        ConfigError: such a section was asked for.
    """
    model = TASKS.get(config["domain"]).models.get(config["model"]["name"])
    unused = []
    if not issubclass(model, EnergyModel):
        unused.append(("objective", "models that descend an energy"))
    if "vision" in config and not config["task"].get("cameras"):
        unused.append(("vision", "tasks with cameras"))
    for section, owner in unused:
        if any(override.startswith(section) for override in overridden):
            raise ConfigError(f"{section}=... is for {owner}; leave it out.")
    return {str(k): None if k in dict(unused) else v for k, v in config.items()}


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="train")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        train(drop_unused_sections(config, HydraConfig.get().overrides.task))


def main() -> None:
    run_entry(_main)


if __name__ == "__main__":
    # As a module with a name, in which hydra's launchers find what other processes are to run.
    from ebt_policy import train as named

    named.main()
