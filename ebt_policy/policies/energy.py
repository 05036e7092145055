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
from ebt_policy.energy import (
    Descent,
    DescentResult,
    FirstOf,
    FrozenEntries,
    GradientNorm,
    NeverStop,
    PathProjection,
    PlainGradient,
    Projection,
    StraightPath,
    select,
)
from ebt_policy.energy.candidate_space import EUCLIDEAN, corrupt
from ebt_policy.energy.objectives import ObjectiveFactory
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.selection import ENERGY_RULES, Rule
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
    """Inference options of an energy policy.

    Args:
        steps: number of descent steps.
        num_candidates: M, the number of chunks that descend together; one of them is selected.
        scoring_level: level in (0, 1) at which finished candidates are scored (see
            `Objective.score`).
        select: selection rule: the lowest ``energy`` (the score), the largest ``energy_decrease``,
            or a vote of the candidates without an energy: ``medoid``, ``density`` or ``first`` (see
            `ebt_policy.energy.selection`).
        stop_grad_norm: a candidate stops early if its gradient norm is below this value; None to
            disable. For landscapes that are flat at the data. Along levels, the gradient does not
            vanish.
        straightness_tol: along levels, a candidate exits early if its path is straight within this
            tolerance (see `StraightPath`), in standard deviations of the actions; None to disable.
        warm_start_level, warm_start_steps: if an earlier plan is available, candidates start from
            it, corrupted to this level in (0, 1), and take this number of steps.
    """

    steps: int = 2
    num_candidates: int = 8
    scoring_level: float = 0.5
    select: Rule = "energy"
    stop_grad_norm: float | None = None
    straightness_tol: float | None = None
    warm_start_level: float = 0.5
    warm_start_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "num_candidates", "warm_start_steps"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"inference.{name} must be at least 1, got {value}.")
        for name in ("scoring_level", "warm_start_level"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ConfigError(f"inference.{name} must lie between 0 and 1, got {value}.")
        if self.select not in ENERGY_RULES:
            raise ConfigError(
                f"inference.select must be one of {', '.join(ENERGY_RULES)}, got {self.select}."
            )
        for name in ("stop_grad_norm", "straightness_tol"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"inference.{name} must be positive or null, got {value}.")

    @property
    def stop(self) -> NeverStop:
        """The rule by which candidates stop early."""
        rules: list[NeverStop] = []
        if self.stop_grad_norm is not None:
            rules.append(GradientNorm(self.stop_grad_norm))
        if self.straightness_tol is not None:
            rules.append(StraightPath(self.straightness_tol, self.num_candidates))
        return FirstOf(tuple(rules)) if rules else NeverStop()


@POLICIES.register("ebt")
class EnergyPolicy(EnergyModel, Policy):
    """Energy-based transformer policy.

    Args:
        shape, normalizer, vision: as in `Policy`.
        size: size of the transformer.
        actions_per_token: as in `ChunkTransformer`.
        inference: options of `EnergyInference`.
        objective: builds the objective that trains the landscape.
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
        objective: ObjectiveFactory,
        vision: VisionEncoder | None = None,
    ) -> None:
        super().__init__(shape, normalizer, vision)
        self.objective = objective(EUCLIDEAN)
        self.net = ChunkTransformer(
            self.network_shape,
            size,
            actions_per_token,
            output="energy",
            level=self.objective.level_conditioned,
        )
        self.inference = options(EnergyInference, inference, "model.inference")
        self.configure_inference()
        self._compiled: Callable[..., DescentResult] | None = None

    def configure_inference(self, **changes: Any) -> None:
        tolerance = changes.get("straightness_tol", self.inference.straightness_tol)
        if tolerance is not None and not self.objective.level_conditioned:
            raise ConfigError(
                "inference.straightness_tol needs a level-conditioned objective (objective=flow); "
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
            batch["noise"],
        )

    def energies(self, obs: dict[str, Tensor], chunks: Tensor) -> Tensor:
        """Return scores (B, M) of finished chunks (B, M, T, A) in env units; lower is better."""
        with torch.no_grad():
            context = self.net.encode(self.encode_observation(obs))
            candidates = self.normalize_actions(obs["obs"], chunks)
            return self.objective.score(
                partial(self.net, context), candidates, self.inference.scoring_level
            )

    def descend(
        self,
        obs: Tensor,
        constraints: NormalizedConstraints | None = None,
        generator: Generators = None,
    ) -> DescentResult:
        """Run the descent of `predict_chunk` in network units; each candidate is one unit.

        Args:
            obs: output of `encode_observation`.
            constraints, generator: as in `_predict_normalized`.

        Returns:
            The result of the selected candidate, with the ``path`` of all candidates.
        """
        config, constraints = self.inference, constraints or NormalizedConstraints()
        empty = obs.new_empty(
            len(obs), config.num_candidates, self.shape.horizon, self.shape.action_dim
        )
        noise = draw_normal(empty, generator)
        # A search whose number of steps depends on time or data cannot be compiled as one graph.
        is_dynamic = constraints.deadline_s is not None or isinstance(config.stop, FirstOf)
        search = self._search if is_dynamic or self._compiled is None else self._compiled
        return search(obs, noise, constraints, generator)

    def compile_prediction(self) -> None:
        # One graph holds all steps, the committed prefix, the limits, the scores and the selection.
        self._compiled = torch.compile(self._search)
        if self.vision is not None:
            self.vision.compile()

    def _search(
        self, obs: Tensor, noise: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> DescentResult:
        config = self.inference
        context = self.net.encode(obs)
        init, level, steps = noise, 0.0, config.steps
        if constraints.warm_start is not None:
            level, steps = config.warm_start_level, config.warm_start_steps
            earlier = constraints.warm_start.unsqueeze(1).expand_as(noise)
            init = corrupt(earlier, noise, noise.new_full(noise.shape[:2], level))
        descent = self.objective.descent(
            steps, num_candidates=config.num_candidates, level=level, device=obs.device
        )
        descent, init = self._constrain(descent, init, noise, constraints)
        energy = partial(self.net, context)
        result = descent(
            energy,
            init,
            score=lambda x: self.objective.score(energy, x, config.scoring_level),
            generator=generator,
        )
        return select(result, config.num_candidates, config.select)

    def _constrain(
        self, descent: Descent, init: Tensor, noise: Tensor, constraints: NormalizedConstraints
    ) -> tuple[Descent, Tensor]:
        """Return the descent with the constraints of a chunk, and its initial candidates."""

        def admit(chunks: Tensor) -> Tensor:
            return self.constrain(chunks, constraints)

        limits = constraints
        if self.inference.straightness_tol is not None:
            # Early-exited candidates are already at level 1. The end predicted from the level of
            # the others would be wrong for them, so it must not be projected.
            limits = replace(constraints, project=None)
        free = limits.project is None and limits.prefix is None
        project = None if free else limits.apply
        if descent.schedule.has_levels:
            step_constraints = (PathProjection(noise, project, admit),)
        elif constraints.prefix_mask is None:
            step_constraints = (Projection(project, admit),)
        else:
            frozen = constraints.prefix_mask.view(1, 1, -1, 1)
            step_constraints = (Projection(project, admit), FrozenEntries(frozen))
            init = torch.where(frozen, constraints.apply(init), init)
        # With a deadline, all steps must take equally long: the slowest one predicts the next.
        gradient = descent.gradient if constraints.deadline_s is None else PlainGradient()
        constrained = replace(
            descent,
            gradient=gradient,
            constraints=step_constraints,
            stop=self.inference.stop,
            deadline_s=constraints.deadline_s,
        )
        return constrained, init

    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        result = self.descend(obs, constraints, generator)
        actions = result.candidate[:, 0]
        if self.inference.stop_grad_norm is not None or constraints.deadline_s is not None:
            # The descent may have ended before its last step, which applies the constraints.
            actions = self.constrain(actions, constraints)
        return Chunk(
            actions=actions,
            steps_used=result.steps_used[:, 0],
            energy=result.energies[-1, :, 0],
            grad_norm=result.grad_norms[-1, :, 0],
        )
