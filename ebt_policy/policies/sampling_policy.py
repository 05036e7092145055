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
from ebt_policy.energy.selection import VOTES, Rule, best_of, line_integral, vote
from ebt_policy.errors import ConfigError
from ebt_policy.policies.base import Chunk, Policy
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

    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        options = self.inference
        context = self.net.encode(obs)
        empty = obs.new_empty(
            len(obs), options.num_candidates, self.shape.horizon, self.shape.action_dim
        )
        x = self.sample(context, draw_normal(empty, generator), constraints, generator)
        x = self.constrain(x, constraints)  # select among executable chunks
        used = torch.full((len(obs),), options.steps, device=obs.device)
        if options.num_candidates == 1:
            return Chunk(actions=x[:, 0], steps_used=used)
        if options.select == "line_integral":
            field = partial(self.score_field, context, level=options.scoring_level)
            score = line_integral(field, x, options.num_candidates)
        else:
            score = vote(options.select, x, options.num_candidates)
        rows = torch.arange(len(x), device=x.device)
        return Chunk(actions=x[rows, best_of(score, options.num_candidates)[:, 0]], steps_used=used)
