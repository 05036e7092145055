"""Base class of models with an energy: objective, replay buffer and inference options."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ebt_policy.energy import (
    DescentResult,
    FirstOf,
    GradientNorm,
    NeverStop,
    RejectIncreases,
    select,
)
from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.objectives import (
    S1,
    S2,
    Contrastive,
    EBTPolicy,
    Equilibrium,
    Flow,
    Objective,
)
from ebt_policy.energy.sampling import Generators
from ebt_policy.errors import ConfigError
from ebt_policy.models.base import Model
from ebt_policy.registry import Registry

OBJECTIVES: Registry[type[Objective]] = Registry("objective", "ebt_policy.objectives")
for _name, _objective in {
    "flow": Flow,
    "equilibrium": Equilibrium,
    "s1": S1,
    "s2": S2,
    "contrastive": Contrastive,
    "ebt_policy": EBTPolicy,
}.items():
    OBJECTIVES.register(_name)(_objective)


@dataclass(frozen=True)
class DescentInference:
    """Inference options of models of text, images or video that descend an energy.

    Args:
        steps: number of descent steps (thinking longer).
        num_candidates: M, number of candidates of each unit; the one with the lowest energy is
            selected (thinking wider).
        stop_grad_norm: gradient norm below which a candidate stops early; None for no early stop.
        reject_energy_increase: whether a step that increases a candidate's energy is undone, after
            which the candidate stops.
    """

    steps: int = 2
    num_candidates: int = 1
    stop_grad_norm: float | None = None
    reject_energy_increase: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "num_candidates"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"inference.{name} must be at least 1, got {value}.")
        norm = self.stop_grad_norm
        if norm is not None and not norm > 0:
            raise ConfigError(f"inference.stop_grad_norm must be positive or null, got {norm}.")

    @property
    def stop(self) -> NeverStop:
        """Stopping rule of these options."""
        rules: list[NeverStop] = []
        if self.reject_energy_increase:
            rules.append(RejectIncreases())
        if self.stop_grad_norm is not None:
            rules.append(GradientNorm(self.stop_grad_norm))
        return FirstOf(tuple(rules)) if rules else NeverStop()


class EnergyModel(Model):
    """Base class of models whose energy is trained by an `Objective`.

    Attributes:
        objective: training objective, a submodule that subclasses set.
    """

    objective: Objective

    def compile_training(self) -> None:
        if not self.objective.compile_steps():
            super().compile_training()

    @property
    def has_random_init(self) -> bool:
        """Whether candidates start at different points, so that several of them can differ."""
        return bool(self.objective.init_std)

    def configure_inference(self, **changes: Any) -> None:
        super().configure_inference(**changes)
        self._check_inference()

    def _check_inference(self) -> None:
        """Raise a ConfigError if this model does not support its inference options."""
        if self.inference.num_candidates > 1 and not self.has_random_init:
            raise ConfigError(
                f"inference.num_candidates={self.inference.num_candidates} has no effect: all "
                "candidates of this model start at the same point; set it to 1."
            )

    def descend_candidates(
        self, energy: EnergyFn, init: Tensor, generator: Generators = None
    ) -> DescentResult:
        """Descend from M adjacent candidates per unit, (B, U * M, *), and select one of them.

        ``inference`` must be a `DescentInference`.
        """
        config: DescentInference = self.inference
        descent = self.objective.descent(config.steps, num_candidates=config.num_candidates)
        descent = replace(descent, stop=config.stop)
        with torch.no_grad():
            return select(descent(energy, init, generator=generator), config.num_candidates)

    @abstractmethod
    def target(self, batch: dict[str, Any]) -> Tensor:
        """Return the targets (B, U, ...) of the candidates in training."""

    def before_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        replay = self.objective.replay
        count = int(len(batch[self.keys[0]]) * self.objective.replay_fraction)
        if replay is None or len(replay) == 0 or count == 0:
            return batch
        replayed = replay.sample(count)
        rows = {key: torch.cat([batch[key], replayed[key]]) for key in batch}
        return {**rows, "replayed": replayed["candidate"]}

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        noise = self.objective.sample_noise(self.target(batch))
        if "replayed" in batch:  # these rows continue earlier descents
            noise["init"][-len(batch["replayed"]) :] = batch["replayed"]
        return noise

    def after_step(self, rows: dict[str, Tensor]) -> None:
        if self.objective.replay is not None:
            self.objective.replay.add(rows)

    def extra_training_state(self) -> dict[str, Any]:
        replay = self.objective.replay
        return {"replay": replay.state_dict()} if replay is not None else {}

    def load_extra_training_state(self, state: dict[str, Any]) -> None:
        if self.objective.replay is not None:
            self.objective.replay.load_state_dict(state["replay"], self.device)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(lr, weight_decay)
        learned_parameters = list(self.objective.parameters())
        if learned_parameters:
            # The learning rate of a learned step size is multiplied by three times its initial
            # value, as in the published recipes (step size 500 and factor 1500 for text, 3000 and
            # 9000 for images).
            learned_ids = {id(p) for p in learned_parameters}
            groups[1]["params"] = [p for p in groups[1]["params"] if id(p) not in learned_ids]
            scale = 3.0 * float(learned_parameters[0].detach())
            groups.append({"params": learned_parameters, "lr": lr * scale, "weight_decay": 0.0})
        return groups
