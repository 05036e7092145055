"""The energy policy: descend E(observation, action chunk) to act.

Shapes: B batch, M candidates, T horizon, A action dimension, To observations, Do their dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.energy import (
    CostStep,
    Descent,
    DescentResult,
    FirstOf,
    FrozenEntries,
    GradientNorm,
    MetropolisLangevin,
    NeverStop,
    PathProjection,
    PlainGradient,
    Projection,
    StraightPath,
    select,
)
from ebt_policy.energy.candidate_space import EUCLIDEAN, corrupt
from ebt_policy.energy.constraints import Constraint
from ebt_policy.energy.objectives import ObjectiveFactory
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.selection import ENERGY_RULES, Rule, rule_scores
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.models.energy_model import EnergyModel
from ebt_policy.policies.base import Policy
from ebt_policy.policies.candidates import Candidates, select_with_costs
from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.chunk_transformer import ChunkTransformer
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.registry import POLICIES
from ebt_policy.policies.teacher import is_verifier
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
        metropolis_steps: number of Metropolis-adjusted Langevin steps at each level between noise
            and data (see `MetropolisLangevin`), for products of policies with two or more
            descent steps.
    """

    steps: int = 2
    num_candidates: int = 8
    scoring_level: float = 0.5
    select: Rule = "energy"
    stop_grad_norm: float | None = None
    straightness_tol: float | None = None
    warm_start_level: float = 0.5
    warm_start_steps: int = 1
    metropolis_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "num_candidates", "warm_start_steps"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"inference.{name} must be at least 1, got {value}.")
        for name in ("scoring_level", "warm_start_level"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ConfigError(f"inference.{name} must lie between 0 and 1, got {value}.")
        if self.metropolis_steps < 0:
            raise ConfigError(
                f"inference.metropolis_steps must not be negative, got {self.metropolis_steps}."
            )
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
        energy: ``product`` for <x, f(x)>, or ``mean`` for the mean of the network's output, as in
            EBT-Policy (Davies et al. 2025).
        teacher: checkpoint of the teacher in training (see `ebt_policy.policies.teacher`); None
            trains on demonstrations.
        inference: options of `EnergyInference`.
        objective: builds the objective that trains the landscape.
    """

    name = "ebt"
    supports_costs = True

    def __init__(
        self,
        shape: PolicyShape,
        normalizer: Normalizer,
        size: TransformerConfig,
        *,
        actions_per_token: int,
        inference: dict[str, Any],
        objective: ObjectiveFactory,
        energy: Literal["product", "mean"] = "product",
        teacher: str | None = None,
        vision: VisionEncoder | None = None,
    ) -> None:
        super().__init__(shape, normalizer, vision)
        if energy not in ("product", "mean"):
            raise ConfigError(f"model.energy must be product or mean, got {energy}.")
        self.objective = objective(EUCLIDEAN)
        can_have_teacher = self.objective.level_conditioned or is_verifier(self)
        if teacher is not None and not can_have_teacher:
            raise ConfigError(
                "model.teacher needs objective=flow with its noise level, or objective=contrastive."
            )
        self._has_teacher = teacher is not None
        self.net = ChunkTransformer(
            self.network_shape,
            size,
            actions_per_token,
            output="energy" if energy == "product" else "mean",
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
        metropolis_steps = changes.get("metropolis_steps", self.inference.metropolis_steps)
        if metropolis_steps and not self.objective.level_conditioned:
            raise ConfigError(
                "inference.metropolis_steps needs a level-conditioned objective (objective=flow)."
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
            The result of the selected candidate, with the ``path`` of all candidates; the result of
            all candidates with ``keep_all``.
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

    def transport(self, features: Tensor, noise: Tensor) -> Tensor:
        """Return the chunks to which noise descends; both are (B, M, T, A) in network units."""
        descent = self._unconstrained_descent(self.inference.steps, device=noise.device)
        descent = replace(descent, final_energy=False)
        return descent(partial(self.net, self.net.encode(features)), noise).candidate

    def _unconstrained_descent(self, steps: int, **arguments: Any) -> Descent:
        """Return the descent of the objective; arguments as in `Objective.descent`."""
        descent = self.objective.descent(steps, **arguments)
        # After training with a teacher, the first step depends on the noise of each candidate.
        return replace(descent, gradient=PlainGradient()) if self._has_teacher else descent

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
        descent = self._unconstrained_descent(
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
        if constraints.keep_all:
            return result
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
            # the others would be wrong for them, so it is neither projected nor moved by costs.
            limits = replace(constraints, project=None, costs=None)
        free = limits.project is None and limits.prefix is None
        project = None if free else limits.apply
        cost = None if limits.costs is None else limits.costs.differentiable
        step_constraints: list[Constraint] = [] if cost is None else [CostStep(cost)]
        if descent.schedule.has_levels:
            step_constraints.append(PathProjection(noise, project, admit))
        else:
            step_constraints.append(Projection(project, admit))
        if not descent.schedule.has_levels and constraints.prefix_mask is not None:
            frozen = constraints.prefix_mask.view(1, 1, -1, 1)
            step_constraints.append(FrozenEntries(frozen))
            init = torch.where(frozen, constraints.apply(init), init)
        # With a deadline, all steps must take equally long: the slowest one predicts the next.
        gradient = descent.gradient if constraints.deadline_s is None else PlainGradient()
        count = self.inference.metropolis_steps
        corrector = MetropolisLangevin(count) if count else None
        constrained = replace(
            descent,
            gradient=gradient,
            constraints=tuple(step_constraints),
            corrector=corrector,
            stop=self.inference.stop,
            deadline_s=constraints.deadline_s,
        )
        return constrained, init

    def _sample_candidates(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Candidates:
        """Return the selected candidate, or all with ``keep_all``; see `_predict_normalized`."""
        result = self.descend(obs, constraints, generator)
        chunks = result.candidate
        if self.inference.stop_grad_norm is not None or constraints.deadline_s is not None:
            # The descent may have ended before its last step, which applies the constraints.
            chunks = self.constrain(chunks, constraints)
        return Candidates(
            chunks, result.steps_used, result.energies[-1], result.grad_norms[-1],
            result.energy_decrease,
        )  # fmt: skip

    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        sample = partial(self._sample_candidates, obs, constraints, generator)
        return select_with_costs(sample, self._selection_score, constraints, self.inference.select)

    def _selection_score(self, candidates: Candidates) -> Tensor:
        """Return the score (B, M) of the selection rule; lower is better."""
        energy, decrease = candidates.energy, candidates.energy_decrease
        assert energy is not None and decrease is not None
        x = candidates.chunks
        return rule_scores(self.inference.select, x, x.shape[1], energy, decrease)
