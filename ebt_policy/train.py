"""Train a policy: ``python -m ebt_policy.train task=push_t [model=ebt objective=flow ...]``.

Builds the task and the model from configuration, hands them to the trainer, and evaluates the
result. Every option is in ``configs/train.yaml`` and the groups beside it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
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
from ebt_policy.data.windows import Windows, fit_normalizer
from ebt_policy.entry import pick_device, report_errors
from ebt_policy.eval import evaluate
from ebt_policy.evaluation.protocol import Protocol
from ebt_policy.models import Policy, build_policy
from ebt_policy.models.vision import Vision
from ebt_policy.options import ConfigError, options
from ebt_policy.tasks import Task
from ebt_policy.training.checkpoint import newest_checkpoint
from ebt_policy.training.log import MetricLog, check_mode
from ebt_policy.training.trainer import TrainConfig, Trainer
from envs.rollout import rollout
from envs.spec import EnvSpec

console = Console()

# Settings that may change when a run goes on: what it learns stays the same, but for rounding.
FREE = ("checkpoint_every", "rollout_every", "log_every", "compile", "inference")
_ABSENT = object()


@dataclass(frozen=True)
class RunConfig:
    """The sections of ``configs/train.yaml``, which says what they are for."""

    task: dict[str, Any]
    model: dict[str, Any]
    objective: dict[str, Any] | None
    size: dict[str, Any]
    vision: dict[str, Any] | None
    seed: int
    run_dir: str
    resume: bool
    device: str
    wandb: str
    train: dict[str, Any]
    evaluation: dict[str, Any]


@dataclass(frozen=True)
class EvaluationConfig(Protocol):
    """The evaluation at the end (``episodes``: 0 for none), and rollouts while training."""

    rollout_episodes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout_episodes < 0:
            raise ConfigError(f"rollout_episodes must be at least 0, got {self.rollout_episodes}.")


def train(config: dict[str, Any]) -> Path:
    """Train, evaluate and report; returns the run folder.

    Args:
        config: resolved content of ``configs/train.yaml``.

    Raises:
        ConfigError, EpisodeError, CheckpointError: before any long work starts.
        NonFiniteLoss: with the step and the last good checkpoint.
    """
    run = options(RunConfig, config, "the configuration")
    train_config = options(TrainConfig, run.train, "train")
    task, evaluation = Task.of(config), options(EvaluationConfig, run.evaluation, "evaluation")
    spec = task.env_spec()
    if task.cameras:  # says what is missing before anything is loaded
        options(Vision, run.vision or {}, "vision")
    if evaluation.episodes or (train_config.rollout_every and evaluation.rollout_episodes):
        spec.check(videos=evaluation.episodes > 0 and evaluation.videos > 0)
    check_mode(run.wandb)
    device = pick_device(run.device)
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision=train_config.mixed_precision
    )
    run_dir = Path(run.run_dir)
    main = accelerator.is_main_process
    _claim(run_dir, config, accelerator)

    with accelerator.main_process_first():  # one downloads what all read
        episodes, note = task.demonstrations()
    if main:
        console.print(note, markup=False)
    policy, windows, validation = _prepare(config, task, episodes, accelerator.device)
    if main:
        console.print(
            f"{policy.name}, {policy.parameter_count:,} parameters, {len(windows):,} windows"
            f"{' (mirror images included)' if task.mirror else ''}, on {accelerator.device.type}, "
            f"in {run_dir}",
            markup=False,
        )
    play = None
    if main and train_config.rollout_every and evaluation.rollout_episodes:
        play = _periodic_rollout(spec, evaluation)
    trainer = Trainer(
        policy, windows, train_config, run_dir,
        seed=run.seed, accelerator=accelerator, validation=validation, rollout=play,
    )  # fmt: skip
    resumed = trainer.resume() if run.resume else None
    if main:
        trainer.log = MetricLog(run_dir, wandb=run.wandb, config=config, resume_step=resumed)
        if resumed is not None:
            console.print(f"resumed at step {resumed:,}")
    try:
        trainer.fit()
    finally:
        if trainer.log is not None:
            trainer.log.close()
    if main and evaluation.episodes:
        evaluate(
            [str(run_dir)],
            evaluation,
            output=run_dir / "evaluation",
            device=accelerator.device,
            command=" ".join(["python -m ebt_policy.train", *sys.argv[1:]]),
        )
    return run_dir


def _prepare(
    config: dict[str, Any], task: Task, episodes: Episodes, device: torch.device
) -> tuple[Policy, Windows, Windows | None]:
    """An untrained policy and its windows, to train on and held out."""
    training, held_out = task.split(episodes, config["seed"])
    windows = task.windows(training, device)
    shape = {
        "obs_dim": windows.obs.shape[1],
        "action_dim": windows.action.shape[1],
        "relative_to": task.relative_to,
        "cameras": {name: list(x.shape[1:3]) for name, x in windows.images.items()} or None,
        "max_prefix": task.max_prefix,
        **task.horizons,
    }
    if task.relative_to is not None:
        known = [i for i in task.relative_to if i is None or 0 <= i < shape["obs_dim"]]
        if not len(known) == len(task.relative_to) == shape["action_dim"]:
            raise ConfigError(
                f"task.relative_to must name {shape['action_dim']} entries of an observation, one "
                f"for each number of an action, from 0 to {shape['obs_dim'] - 1} or null; got "
                f"{list(task.relative_to)}."
            )
    normalizer = fit_normalizer(windows, task.relative_to)
    torch.manual_seed(config["seed"])
    policy = build_policy({**config, "shape": shape}, normalizer)
    if policy.vision is not None:
        policy.vision.load_pretrained()
    policy.config["demos"] = len(episodes) - task.validation_episodes
    validation = None if held_out is None else task.windows(held_out, device)
    return policy.to(device), windows, validation


def _periodic_rollout(spec: EnvSpec, evaluation: EvaluationConfig):
    episodes = evaluation.rollout_episodes

    def play(policy: Policy) -> dict[str, float]:
        try:
            results = rollout(
                policy, spec, range(90_000, 90_000 + episodes), workers=evaluation.workers
            )
        except FloatingPointError as error:  # a landscape that is still too steep may learn better
            console.print(f"no rollout: {error}", markup=False)
            return {}
        return {
            "rollout_score": sum(r.score for r in results) / episodes,
            "rollout_success": sum(r.success for r in results) / episodes,
        }

    return play


def _differing(before: Any, now: Any) -> list[str]:
    """Keys of a section whose values differ; for a section that is one value, that it does."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [""]
    keys = {**before, **now}
    return [key for key in keys if before.get(key, _ABSENT) != now.get(key, _ABSENT)]


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
        changed = [
            f"{section}.{key}".rstrip(".")
            for section in ("task", "model", "objective", "size", "vision", "seed", "train")
            for key in _differing(before.get(section), config[section])
            if key not in FREE
        ]
        if changed:
            raise ConfigError(
                f"{run_dir} was trained with other settings of {', '.join(changed)} (see its "
                "config.yaml); give another run_dir=... for the new ones."
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
        if not config["task"].get("cameras"):  # type: ignore[union-attr]
            if any(o.startswith("vision") for o in overridden):
                raise ConfigError("vision=... belongs to tasks with cameras; leave it out.")
            config["vision"] = None
        train({str(k): v for k, v in config.items()})


if __name__ == "__main__":
    main()
