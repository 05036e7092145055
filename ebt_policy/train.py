"""Train: ``python -m ebt_policy.train task=push_t [model=ebt objective=flow ...]``.

Builds the task and the model from configuration, trains the model, and evaluates the result. All
options are in ``configs/train.yaml`` and the groups beside it; ``configs/domain`` has the defaults
of policies, text, images and video.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ebt_policy.cli import Entry, command_line, pick_device, report_errors, run_entry
from ebt_policy.config import options
from ebt_policy.evaluation.live_curve import LiveCurve
from ebt_policy.training.config import RunConfig, TrainConfig
from ebt_policy.training.log import MetricLog
from ebt_policy.training.overrides import choose_budget, drop_unused_sections
from ebt_policy.training.processes import devices, join_processes
from ebt_policy.training.run_folder import prepare_run_dir, save_run_config
from ebt_policy.training.task import TASKS
from ebt_policy.training.trackers import check_tracker
from ebt_policy.training.trainer import Trainer

console = Console()


def train(config: dict[str, Any]) -> Path:
    """Train, evaluate and report; return the run folder.

    Args:
        config: resolved content of ``configs/train.yaml``.

    Raises:
        ConfigError, EpisodeError, TextError, CheckpointError: if the configuration, the data or a
            checkpoint cannot be used; raised before long work starts.
        NonFiniteLoss: if a loss, gradient or weight is not finite; the message names the step and
            the last good checkpoint.
    """
    run = options(RunConfig, config, "the configuration")
    train_config = options(TrainConfig, run.train, "train")
    task = TASKS.get(run.domain)(config, train_config)
    check_tracker(run.tracker)
    accelerator = join_processes(pick_device(run.device), train_config.mixed_precision)
    is_main, run_dir = accelerator.is_main_process, Path(run.run_dir)
    with prepare_run_dir(run_dir, config, is_main=is_main):
        with accelerator.main_process_first():  # one process downloads the data for all
            data = task.load_data()
        if is_main:
            console.print(task.describe(data), markup=False, soft_wrap=True)
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
        curve = LiveCurve(run_dir)
        trainer = Trainer(
            model, setup.train_data, train_config, run_dir,
            seed=run.seed, accelerator=accelerator, validation_data=setup.validation_data,
            validate=setup.validate, on_checkpoint=curve.update,
        )  # fmt: skip
        resumed = trainer.resume() if run.resume else None
        if is_main:
            save_run_config(run_dir, config, model.parameter_count)
            trainer.log = MetricLog(
                run_dir, tracker=run.tracker, config=config, resume_step=resumed
            )
            if resumed is not None:
                console.print(f"resumed at step {resumed:,}")
        try:
            trainer.fit()
        finally:
            trainer.sampler.close()
            if trainer.log is not None:
                trainer.log.close()
        if is_main:
            curve.draw()
            task.evaluate(data, run_dir, accelerator.device, command_line("ebt_policy.train"))
    return run_dir


def _run(config: dict[str, Any], overrides: Sequence[str]) -> None:
    config["train"] = choose_budget(config["train"], overrides)
    train(drop_unused_sections(config, overrides))


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="train")
def _sweep(cfg: DictConfig) -> None:
    with report_errors():
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        _run(config, HydraConfig.get().overrides.task)


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "ebt-train",
            "train",
            "Train a model, evaluate it, and write a report into its run folder.",
            (
                "task=push_t",
                "task=push_t model=diffusion size=s train.steps=20000 run_dir=runs/long",
                "task=text task.path=my.txt",
                "task=lift --help",
            ),
            _run,
            sweep=_sweep,
        )
    )


if __name__ == "__main__":
    # Import the module by its name, so that the processes of hydra's launchers can import it, too.
    from ebt_policy import train as named

    named.main()
