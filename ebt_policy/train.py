"""Train a policy: ``python -m ebt_policy.train task=push_t [model=ebt objective=flow ...]``.

Builds the task and the model from configuration, hands them to the trainer, and evaluates the
result. Every option is in ``configs/train.yaml`` and the groups beside it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from yaml import YAMLError

from ebt_policy.data.episodes import Episodes
from ebt_policy.data.normalize import Normalizer
from ebt_policy.data.windows import Windows, split_episodes
from ebt_policy.entry import pick_device, report_errors
from ebt_policy.eval import check_counts, evaluate
from ebt_policy.models import ConfigError, Policy, build_policy, options
from ebt_policy.tasks import augment, env_spec, load_demonstrations
from ebt_policy.training.checkpoint import newest_checkpoint
from ebt_policy.training.log import MetricLog, check_mode
from ebt_policy.training.trainer import TrainConfig, Trainer
from envs.rollout import RolloutPool

console = Console()


def train(config: dict[str, Any]) -> Path:
    """Train, evaluate and report; returns the run folder.

    Args:
        config: resolved content of ``configs/train.yaml``.

    Raises:
        ConfigError, EpisodeError, CheckpointError: before any long work starts.
        NonFiniteLoss: with the step and the last good checkpoint.
    """
    train_config = options(TrainConfig, config["train"], "train")
    check_mode(config["wandb"])
    spec = env_spec(config["task"])
    if config["evaluation"]["episodes"]:
        check_counts(**{k: v for k, v in config["evaluation"].items() if k != "rollout_episodes"})
    device = pick_device(config["device"])
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision=train_config.mixed_precision
    )
    run_dir = Path(config["run_dir"])
    main = accelerator.is_main_process
    _claim(run_dir, config, accelerator)

    episodes, note = load_demonstrations(config["task"])
    if main:
        console.print(note, markup=False)
    policy, windows, validation = _prepare(config, episodes, accelerator.device)
    with_images = " (mirror images included)" if config["task"]["mirror"] else ""
    if main:
        console.print(
            f"{config['model']['name']}, {policy.parameter_count:,} parameters, "
            f"{len(windows):,} windows{with_images}, on {accelerator.device.type}, in {run_dir}",
            markup=False,
        )
    pool = None
    log = None
    try:
        rollout = None
        if main and train_config.rollout_every and config["evaluation"]["rollout_episodes"]:
            pool = RolloutPool(spec, config["evaluation"]["workers"])
            rollout = _periodic_rollout(pool, config["evaluation"]["rollout_episodes"])
        trainer = Trainer(
            policy, windows, train_config, run_dir,
            seed=config["seed"], accelerator=accelerator, validation=validation, rollout=rollout,
        )  # fmt: skip
        resumed = trainer.resume() if config["resume"] else None
        if main:
            log = MetricLog(run_dir, wandb=config["wandb"], config=config, resume_step=resumed)
            trainer.log = log
            if resumed is not None:
                console.print(f"resumed at step {resumed:,}")
        trainer.fit()
    finally:
        if pool is not None:
            pool.close()
        if log is not None:
            log.close()
    if main and config["evaluation"]["episodes"]:
        evaluate(
            [str(run_dir)],
            output=run_dir / "evaluation",
            episodes=config["evaluation"]["episodes"],
            seed=config["evaluation"]["seed"],
            videos=config["evaluation"]["videos"],
            workers=config["evaluation"]["workers"],
            device=accelerator.device,
            command=" ".join(["python -m ebt_policy.train", *sys.argv[1:]]),
        )
    return run_dir


def _prepare(
    config: dict[str, Any], episodes: Episodes, device: torch.device
) -> tuple[Policy, Windows, Windows | None]:
    """An untrained policy and its normalised windows, to train on and held out."""
    task = config["task"]
    if not 0 <= task["validation_episodes"] < len(episodes):
        raise ConfigError(
            f"task.validation_episodes={task['validation_episodes']} must leave some of the "
            f"{len(episodes)} demonstrations to train on."
        )
    chosen, held_out = split_episodes(len(episodes), task["validation_episodes"], config["seed"])
    training = augment(task, episodes.select(chosen))
    normalizer = Normalizer.fit(
        {key: torch.from_numpy(training.arrays[key]) for key in ("obs", "action")}
    )
    horizons = {key: task[key] for key in ("horizon", "n_obs_steps", "n_action_steps")}

    def cut(some: Episodes) -> Windows:
        arrays = {
            key: normalizer.normalize(key, torch.from_numpy(some.arrays[key]))
            for key in ("obs", "action")
        }
        return Windows(arrays, some.ends, device=device, **horizons)

    shape = {
        "obs_dim": training.arrays["obs"].shape[1],
        "action_dim": training.arrays["action"].shape[1],
        **horizons,
    }  # fmt: skip
    torch.manual_seed(config["seed"])
    policy = build_policy({**config, "shape": shape}, normalizer)
    policy.config["demos"] = len(chosen)
    validation = cut(episodes.select(held_out)) if len(held_out) else None
    return policy.to(device), cut(training), validation


def _periodic_rollout(pool: RolloutPool, episodes: int):
    def rollout(policy: Policy) -> dict[str, float]:
        results = pool.rollout(policy, range(90_000, 90_000 + episodes))
        return {
            "rollout_score": sum(r.score for r in results) / episodes,
            "rollout_success": sum(r.success for r in results) / episodes,
        }

    return rollout


def _claim(run_dir: Path, config: dict[str, Any], accelerator: Accelerator) -> None:
    """Make the run folder ours, or say why it cannot be."""
    stored = run_dir / "config.yaml"
    if newest_checkpoint(run_dir) is not None:
        if not config["resume"]:
            raise ConfigError(
                f"{run_dir} already holds a run: add resume=true to go on with it, or give "
                "another run_dir=..."
            )
        try:
            before = OmegaConf.to_container(OmegaConf.load(stored))
            assert isinstance(before, dict)
        except (OSError, YAMLError, AssertionError) as error:
            raise ConfigError(
                f"{stored} cannot be read, so the run cannot go on with its settings; give another "
                "run_dir=..."
            ) from error
        for section in ("task", "model", "objective", "size", "seed", "train"):
            if before.get(section) != config[section]:
                raise ConfigError(
                    f"{run_dir} was trained with {section} = {before.get(section)}, now it is "
                    f"{config[section]}; give another run_dir=... for the new settings."
                )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        temporary = stored.with_suffix(".tmp")
        OmegaConf.save(OmegaConf.create(config), temporary)
        os.replace(temporary, stored)
    accelerator.wait_for_everyone()


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")
def main(cfg: DictConfig) -> None:
    with report_errors():
        config = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(config, dict)
        overridden = HydraConfig.get().overrides.task
        if config["model"]["name"] != "ebt":  # type: ignore[index]
            if any(o.startswith("objective") for o in overridden):
                raise ConfigError("objective=... belongs to model=ebt alone; leave it out.")
            config["objective"] = None
        train({str(k): v for k, v in config.items()})


if __name__ == "__main__":
    main()
