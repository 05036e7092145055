"""Base of policies that sample chunks from a learned vector field and select one of them.

Without an energy, a chunk is selected by a vote of the samples or by the line integral of the
field. If the field is a gradient, the line integral is an energy difference.
Shapes: B batch, M candidates, T horizon, A action dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.selection import VOTES, Rule, line_integral, vote
from ebt_policy.errors import ConfigError
from ebt_policy.policies.base import Policy
from ebt_policy.policies.candidates import Candidates, select_with_costs
from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import NormalizedConstraints


@dataclass(frozen=True)
class SamplingInference:
    """Number of sampled chunks, and the rule that selects one.

    Args:
        num_candidates: M, the number of chunks that are sampled together.
        select: selection rule: a vote of the candidates, ``medoid``, ``density`` or ``first`` (see
            `ebt_policy.energy.selection`), or the lowest ``line_integral`` of the field.
        scoring_level: corruption level in (0, 1) at which the line integral scores finished
            candidates, as in an `EnergyPolicy`.
    """

    num_candidates: int = 1
    select: Rule = "density"
    scoring_level: float = 0.5

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ConfigError(
                f"inference.num_candidates must be at least 1, got {self.num_candidates}."
            )
        if self.select not in (rules := (*VOTES, "line_integral")):
            raise ConfigError(
                f"inference.select must be one of {', '.join(rules)} for a policy without an "
                f"energy, got {self.select}."
            )
        if not 0 < self.scoring_level < 1:
            raise ConfigError(
                f"inference.scoring_level must lie between 0 and 1, got {self.scoring_level}."
            )


class SamplingPolicy(Policy):
    """Base of sampling policies, whose ``inference`` is a `SamplingInference`."""

    supports_costs = True
    net: Any

    @abstractmethod
    def sample(
        self, context: Any, noise: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Tensor:
        """Return chunks in network units, sampled from ``noise``; both are (B, M, T, A)."""

    @abstractmethod
    def score_field(self, context: Any, chunks: Tensor, level: float) -> Tensor:
        """Return the gradient of the negative log-likelihood of finished chunks (B, M, T, A).

        Args:
            level: corruption level in (0, 1) at which the network evaluates them.
        """

    def _sample_candidates(
        self,
        obs: Tensor,
        constraints: NormalizedConstraints,
        generator: Generators,
        context: Any = None,
    ) -> Candidates:
        """Return all candidates.

        Args:
            obs, constraints, generator: as in `_predict_normalized`.
            context: the encoded ``obs``; None encodes it.
        """
        config, shape = self.inference, self.shape
        empty = obs.new_empty(len(obs), config.num_candidates, shape.horizon, shape.action_dim)
        context = self.net.encode(obs) if context is None else context
        x = self.sample(context, draw_normal(empty, generator), constraints, generator)
        x = self.constrain(x, constraints)  # select among executable chunks
        return Candidates(x, torch.full(x.shape[:2], config.steps, device=obs.device))

    def _selection_score(self, context: Any, candidates: Candidates) -> Tensor:
        """Return the score (B, M) of the selection rule; lower is better."""
        config, x = self.inference, candidates.chunks
        if config.select == "line_integral":
            field = partial(self.score_field, context, level=config.scoring_level)
            return line_integral(field, x, x.shape[1])
        return vote(config.select, x, x.shape[1])

    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        context = self.net.encode(obs)
        sample = partial(self._sample_candidates, obs, constraints, generator, context)
        score = partial(self._selection_score, context)
        return select_with_costs(sample, score, constraints, self.inference.select)
