"""The energy policy: descend E(observation, action chunk) to act.

Shapes: B batch, M candidates, T horizon, A action dimension, To observations, Do their dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.energy import DescentResult, descend
from ebt_policy.energy.candidate_space import corrupt
from ebt_policy.energy.objectives import Objective
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.selection import WITH_ENERGY, Rule
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.models.energy_model import EnergyModel
from ebt_policy.policies.base import Chunk, Policy
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.chunk_transformer import ChunkTransformer
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.registry import POLICIES
from ebt_policy.policies.vision import VisionEncoder


@dataclass(frozen=True)
class EnergyInference:
    """How an energy policy predicts.

    Args:
        steps: descent steps.
        candidates: M chunks descended together, of which the best is taken.
        level: at which finished candidates are verified (see `Objective.verify`).
        select: the best has the lowest verified ``energy``, the largest ``drop`` on its way, or is
            what the candidates vote for without an energy: ``medoid``, ``density`` or ``first``
            (see `ebt_policy.energy.selection`).
        stop_grad_norm: a candidate stops early below this gradient norm; None never. For landscapes
            that are flat at the data; along levels the gradient never fades.
        stop_change: along levels, a candidate lands early where its path is straight (see
            `descend`), in units of the actions' spread; None never.
        warm_level, warm_steps: where an earlier plan is given, candidates start from it, corrupted
            to this level, and take so many steps.
    """

    steps: int = 2
    candidates: int = 8
    level: float = 0.5
    select: Rule = "energy"
    stop_grad_norm: float | None = None
    stop_change: float | None = None
    warm_level: float = 0.5
    warm_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "candidates", "warm_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"inference.{name} must be at least 1.")
        for name in ("level", "warm_level"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ConfigError(f"inference.{name} must lie between 0 and 1, got {value}.")
        if self.select not in WITH_ENERGY:
            raise ConfigError(
                f"inference.select must be one of {', '.join(WITH_ENERGY)}, got {self.select}."
            )
        for name in ("stop_grad_norm", "stop_change"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"inference.{name} must be positive or null, got {value}.")


@POLICIES.register("ebt")
class EnergyPolicy(EnergyModel, Policy):
    """Energy-based transformer policy.

    Args:
        shape, normalizer, vision: as in `Policy`.
        size: the size dial.
        actions_per_token: as in `ChunkTransformer`.
        inference: options of `EnergyInference`.
        objective: how the landscape is learned.
    """

    name = "ebt"

    def __init__(
        self,
        shape: PolicyShape,
        normalizer: Normalizer,
        size: TransformerConfig,
        *,
        actions_per_token: int,
        inference: dict[str, Any],
        objective: Objective,
        vision: VisionEncoder | None = None,
    ) -> None:
        super().__init__(shape, normalizer, vision)
        self.objective = objective
        self.net = ChunkTransformer(
            self.network_shape,
            size,
            actions_per_token,
            output="energy",
            level=objective.level_conditioned,
        )
        self.inference = options(EnergyInference, inference, "model.inference")
        self.configure_inference()
        self._compiled: Callable[..., DescentResult] | None = None

    def configure_inference(self, **changes: Any) -> None:
        stop_change = changes.get("stop_change", self.inference.stop_change)
        if stop_change is not None and not self.objective.level_conditioned:
            raise ConfigError(
                "inference.stop_change needs an objective that is told the level (objective=flow); "
                "use inference.stop_grad_norm."
            )
        super().configure_inference(**changes)

    def target(self, batch: dict[str, Any]) -> Tensor:
        return batch["action"].unsqueeze(1)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        context = self.net.encode(self.observation_features(batch))
        return self.objective(
            partial(self.net, context),
            self.target(batch),
            batch["draws"],
        )

    def energies(self, obs: dict[str, Tensor], chunks: Tensor) -> Tensor:
        """Verified energy of given chunks (B, M, T, A), env units -> (B, M)."""
        with torch.no_grad():
            context = self.net.encode(self.encode_observation(obs))
            candidates = self.normalize_actions(obs["obs"], chunks)
            return self.objective.verify(
                partial(self.net, context), candidates, self.inference.level
            )

    def descend(
        self,
        obs: Tensor,
        constraints: NormalizedConstraints | None = None,
        generator: Generators = None,
    ) -> DescentResult:
        """The descent behind `predict_chunk`, in the network's units, one unit a candidate.

        Args:
            obs: as `encode_observation` gives it; the rest is `_predict_normalized`'s.
        """
        how, constraints = self.inference, constraints or NormalizedConstraints()
        like = obs.new_empty(len(obs), how.candidates, self.shape.horizon, self.shape.action_dim)
        noise = draw_normal(like, generator)
        # What asks the clock or the candidates whether to go on cannot be compiled as one piece.
        asks = (constraints.deadline_s, how.stop_grad_norm, how.stop_change)
        whole = all(option is None for option in asks)
        search = self._compiled if whole and self._compiled is not None else self._search
        return search(obs, noise, constraints, generator)

    def compile_prediction(self) -> None:
        # As one piece: all steps, a committed prefix, a robot's limits and the verification.
        self._compiled = torch.compile(self._search)
        if self.vision is not None:
            self.vision.compile()

    def _search(
        self, obs: Tensor, noise: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> DescentResult:
        how = self.inference
        context = self.net.encode(obs)
        init, level, steps = noise, 0.0, how.steps
        if constraints.warm_start is not None:
            level, steps = how.warm_level, how.warm_steps
            earlier = constraints.warm_start.unsqueeze(1).expand_as(noise)
            init = corrupt(earlier, noise, noise.new_full(noise.shape[:2], level))
        chosen = self.objective.descent_options(steps, level, device=obs.device)
        levels = chosen.get("levels")
        if levels is None and constraints.prefix_mask is not None:
            chosen["frozen"] = constraints.prefix_mask.view(1, 1, -1, 1)
            init = torch.where(chosen["frozen"], constraints.apply(init), init)
        # Who lands early is beyond the level of the others: no end of its path is to be foreseen.
        bound = constraints if how.stop_change is None else replace(constraints, project=None)
        bound = bound if bound.project is not None or bound.prefix is not None else None

        def project(x: Tensor, done: int) -> Tensor:
            if done == steps:
                return self.constrain(x, constraints)
            if bound is None:
                return x
            return (
                bound.apply(x)
                if levels is None
                else project_along_path(x, noise, levels[done], bound)
            )

        energy = partial(self.net, context)
        return descend(
            energy,
            init,
            steps=steps,
            candidates=how.candidates,
            select=how.select,
            stop_grad_norm=how.stop_grad_norm,
            stop_change=how.stop_change,
            deadline_s=constraints.deadline_s,
            project=project,
            verify=lambda x: self.objective.verify(energy, x, how.level),
            generator=generator,
            **chosen,
        )

    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        found = self.descend(obs, constraints, generator)
        actions, stops = found.candidate[:, 0], self.inference.stop_grad_norm is not None
        if stops or constraints.deadline_s is not None:  # perhaps before the last step
            actions = self.constrain(actions, constraints)
        return Chunk(
            actions=actions,
            steps_used=found.steps_used[:, 0],
            energy=found.energies[-1, :, 0],
            grad_norm=found.grad_norms[-1, :, 0],
        )


def project_along_path(
    x: Tensor, noise: Tensor, level: Tensor, constraints: NormalizedConstraints
) -> Tensor:
    """Candidates x (B, M, T, A) at a level in (0, 1), moved so that their paths end on the terms.

    x = g y + (1 - g) n: the end y that a candidate is heading for is put on the terms, and the
    candidate where the path to it lies. A level-conditioned energy expects all actions to be
    equally noisy; clean ones beside noisy ones are nothing that it was trained on.
    """
    end = constraints.apply((x - (1 - level) * noise) / level)
    return corrupt(end, noise, level.expand(noise.shape[:2]))
