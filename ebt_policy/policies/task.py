"""Training of policies on demonstrations, with evaluation by rollouts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ebt_policy.config import options
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.windows import fit_normalizer
from ebt_policy.envs.rollout import rollout
from ebt_policy.errors import ConfigError
from ebt_policy.policies.base import Policy
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.registry import POLICIES, build_policy
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.policies.teacher import attach_teacher
from ebt_policy.policies.vision import VisionConfig
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.task import TrainingSetup, TrainingTask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingEvalConfig(EvalConfig):
    """The final evaluation, and the rollouts during training.

    Args:
        episodes: number of episodes of the final evaluation; 0 for no evaluation.
        rollout_episodes: number of episodes of each evaluation during training.
    """

    rollout_episodes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout_episodes < 0:
            raise ConfigError(f"rollout_episodes must be at least 0, got {self.rollout_episodes}.")


class Demonstrations(NamedTuple):
    """Episodes to train on, and a one-line description of them."""

    episodes: Episodes
    note: str


class PolicyTrainingTask(TrainingTask[Demonstrations]):
    """Train a policy on demonstrations; validate and evaluate it by rollouts in its simulator."""

    models = POLICIES

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        super().__init__(config, train)
        self.task = PolicyTaskConfig.from_config(config).resolved()
        self._store_choices(config["task"])
        self.evaluation = options(TrainingEvalConfig, config["evaluation"], "evaluation")
        self.spec = None if self.task.env is None else self.task.env_spec()
        self._plays = (
            self.spec is not None and train.eval_every > 0 and self.evaluation.rollout_episodes > 0
        )
        if self.task.cameras:  # raises errors before any data is loaded
            options(VisionConfig, config["vision"] or {}, "vision")
        if self.spec is not None and (self.evaluation.episodes or self._plays):
            self.spec.check(videos=self.evaluation.episodes > 0 and self.evaluation.videos > 0)

    def _store_choices(self, options: dict[str, Any]) -> None:
        """Write the options that the task's family chose into the configuration of the run."""
        options |= {name: getattr(self.task, name) for name in options}

    def load_data(self) -> Demonstrations:
        return Demonstrations(*self.task.demonstrations())

    def describe(self, data: Demonstrations) -> str:
        return data.note

    def build(self, data: Demonstrations, device: torch.device) -> TrainingSetup:
        task, config = self.task, self.config
        relative_to = task.relative_entries
        training, held_out = task.split(data.episodes, config["seed"])
        windows = task.windows(training, device)
        shape = {
            "obs_dim": windows.obs.shape[1],
            "action_dim": windows.action.shape[1],
            "relative_to": relative_to,
            "cameras": {name: list(x.shape[1:3]) for name, x in windows.images.items()} or None,
            "max_prefix_len": task.max_prefix_len,
            **task.horizons,
        }
        if relative_to is not None:
            valid_indices = [i for i in relative_to if i is None or 0 <= i < shape["obs_dim"]]
            if not len(valid_indices) == len(relative_to) == shape["action_dim"]:
                raise ConfigError(
                    f"task.relative_to must name {shape['action_dim']} entries of an observation, "
                    f"one for each action dimension, from 0 to {shape['obs_dim'] - 1} or null; "
                    f"got {list(relative_to)}."
                )
        normalizer = fit_normalizer(windows, relative_to)
        torch.manual_seed(config["seed"])
        policy = build_policy({**config, "shape": shape}, normalizer)
        if policy.vision is not None:
            policy.vision.load_pretrained()
        if teacher := config["model"].get("teacher"):
            attach_teacher(policy.to(device), teacher)
        policy.config["demos"] = len(training) // (2 if task.mirror else 1)
        images = " (mirror images included)" if task.mirror else ""
        return TrainingSetup(
            policy.to(device),
            windows,
            None if held_out is None else task.windows(held_out, device),
            f"{len(windows):,} windows{images}",
            self._rollout_metrics if self._plays else None,
        )

    def _rollout_metrics(self, policy: Policy) -> dict[str, float]:
        """Return metrics of episodes whose seeds lie below the seeds of the final evaluation."""
        episodes = self.evaluation.rollout_episodes
        seeds = range(90_000, 90_000 + episodes)
        assert self.spec is not None
        try:
            results = rollout(policy, self.spec, seeds, workers=self.evaluation.workers)
        except FloatingPointError as error:  # further training may help
            log.warning("skipped the rollouts of this step: %s", error)
            return {}
        return {
            "rollout_score": sum(r.score for r in results) / episodes,
            "rollout_success": sum(r.success for r in results) / episodes,
        }

    def evaluate(
        self, data: Demonstrations, run_dir: Path, device: torch.device, command: str
    ) -> None:
        from ebt_policy.policies.evaluate import evaluate_policies  # slow to import, draws figures

        if self.evaluation.episodes if self.spec else self.task.validation_episodes:
            output = run_dir / "evaluation"
            evaluate_policies(
                [str(run_dir)], self.evaluation, output=output, device=device, command=command
            )
