"""Constraints on a predicted action chunk: a committed prefix, limits, costs, a deadline.

Shapes: B batch, T horizon, P committed actions, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ebt_policy.errors import ConfigError
from ebt_policy.policies.cost_evaluation import ChunkCosts
from ebt_policy.policies.costs import CostFunction

if TYPE_CHECKING:
    from ebt_policy.policies.base import Policy

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChunkConstraints:
    """Constraints that a caller of `Policy.predict_chunk` sets on a chunk, in env units.

    Attributes:
        prefix: (B, P, A), the first P actions of the chunk, which are already committed (the first
            To - 1 actions of a chunk lie in the past). A policy trained with
            ``task.max_prefix_len`` predicts the rest conditioned on them. Other policies only keep
            them fixed.
        warm_start: (B, T, A), an earlier plan for the same time steps. An `EnergyPolicy` starts
            from it (see `EnergyInference`); other policies ignore it.
        project: function that maps chunks (B, ..., T, A) to the nearest executable ones, for
            example within a robot's limits. Policies with several candidates project all of them
            and select among the executable chunks.
        deadline_s: wall-clock budget of the refinement, in seconds. A descent ends before a step
            that would exceed it, and no further round starts that would exceed it. Policies with a
            fixed number of passes use it only for the rounds.
        costs: functions of the actions from index To - 1 on (see `ebt_policy.policies.costs`),
            committed ones included. Differentiable costs move the candidates during prediction,
            except with early exit (``straightness_tol``). All take part in the selection.
        budget_nats: the candidate of the lowest cost is selected among those whose energy is at
            most this much above the lowest energy. None selects the lowest sum of energy and cost.
        max_rounds: further candidates are sampled, up to this many times in all, until one of them
            has a cost of zero.

    Raises:
        ValueError: an option is invalid, or needs costs.
    """

    prefix: Tensor | None = None
    warm_start: Tensor | None = None
    project: Projection | None = None
    deadline_s: float | None = None
    costs: Sequence[CostFunction] = ()
    budget_nats: float | None = None
    max_rounds: int = 1

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise ValueError(f"max_rounds must be at least 1, got {self.max_rounds}.")
        if self.budget_nats is not None and not self.budget_nats >= 0:
            raise ValueError(f"budget_nats must not be negative, got {self.budget_nats}.")
        if not self.costs and (self.budget_nats is not None or self.max_rounds > 1):
            raise ValueError("budget_nats and max_rounds need costs.")


@dataclass(frozen=True, eq=False)
class NormalizedConstraints:
    """`ChunkConstraints` in network units.

    The tensor shapes do not depend on the length of the prefix, so that one compiled prediction
    serves every length.

    Attributes:
        prefix: (B, T, A), the committed actions; values after the last one are arbitrary.
        prefix_mask: (T, 1) bool, True for committed actions; None if ``prefix`` is None.
        warm_start: (B, T, A), as in `ChunkConstraints`.
        project: as in `ChunkConstraints`, but for chunks in network units.
        deadline_s, budget_nats, max_rounds: as in `ChunkConstraints`.
        costs: the costs as a function of chunks in network units; None if there are none.
        keep_all: whether a descent returns all candidates instead of the selected one.
    """

    prefix: Tensor | None = None
    prefix_mask: Tensor | None = None
    warm_start: Tensor | None = None
    project: Projection | None = None
    deadline_s: float | None = None
    costs: ChunkCosts | None = None
    budget_nats: float | None = None
    max_rounds: int = 1
    keep_all: bool = False

    def apply(self, chunks: Tensor) -> Tensor:
        """Return chunks (B, ..., T, A) after the projection, with the committed prefix inserted."""
        if self.project is not None:
            chunks = self.project(chunks)
        return self.hold_prefix(chunks, self.prefix)

    def hold_prefix(self, chunks: Tensor, prefix: Tensor | None) -> Tensor:
        """Return chunks (B, ..., T, A) with the committed actions replaced by ``prefix``.

        Args:
            prefix: (B, ..., T, A), possibly with fewer dimensions between B and T than ``chunks``;
                None leaves the chunks unchanged.
        """
        if prefix is None or self.prefix_mask is None:
            return chunks
        extra_dims = (1,) * (chunks.ndim - prefix.ndim)
        return torch.where(
            self.prefix_mask, prefix.view(len(chunks), *extra_dims, *prefix.shape[1:]), chunks
        )


def normalize_constraints(
    policy: Policy,
    obs: dict[str, Tensor],
    constraints: ChunkConstraints,
    prefix: Tensor | None,
) -> NormalizedConstraints:
    """Convert constraints to the network units of a policy.

    Args:
        policy: the policy.
        obs: observation in env units.
        constraints: the constraints in env units.
        prefix: (B, P, A), committed actions in network units; None if there are none.

    Raises:
        ConfigError, CostError: see `Policy.predict_chunk`.
    """
    state, warm_start, project = obs["obs"], constraints.warm_start, constraints.project

    def project_normalized(x: Tensor) -> Tensor:
        assert project is not None
        return policy.normalize_actions(state, project(policy.unnormalize_actions(state, x)))

    normalized = NormalizedConstraints(
        warm_start=None if warm_start is None else policy.normalize_actions(state, warm_start),
        project=None if project is None else project_normalized,
        deadline_s=constraints.deadline_s,
        costs=_normalize_costs(policy, obs, constraints.costs),
        budget_nats=constraints.budget_nats,
        max_rounds=constraints.max_rounds,
        keep_all=bool(constraints.costs),
    )
    if prefix is None:
        return normalized
    horizon = policy.shape.horizon
    steps = torch.arange(horizon, device=state.device).unsqueeze(1)
    return replace(
        normalized, prefix=pad_to_horizon(prefix, horizon), prefix_mask=steps < prefix.shape[1]
    )


def _normalize_costs(
    policy: Policy, obs: dict[str, Tensor], costs: Sequence[CostFunction]
) -> ChunkCosts | None:
    """Return the costs as a function of chunks in network units, None if there are none.

    Differentiable costs are evaluated once, because they are a part of the prediction, which may be
    compiled. The other costs are evaluated after it.
    """
    if not costs:
        return None
    if not policy.supports_costs:
        raise ConfigError(f"model={policy.name} does not support costs; remove them.")
    state, shape = obs["obs"], policy.shape
    chunk_costs = ChunkCosts(
        costs, obs, partial(policy.unnormalize_actions, state), shape.n_obs_steps - 1
    )
    chunk_costs.check_differentiable(
        state.new_zeros(len(state), 1, shape.horizon, shape.action_dim)
    )
    return chunk_costs


def pad_to_horizon(actions: Tensor, horizon: int) -> Tensor:
    """Pad actions (B, P, A) with zeros to (B, T, A)."""
    return F.pad(actions, (0, 0, 0, horizon - actions.shape[1]))
