"""What policies share that sample chunks from a learned field: samples, and a choice of one.

Whatever may be chosen with an energy may be chosen without: by a vote of the samples, or by the
line integral of the field, which is an energy where the field has one.
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
class CandidateInference:
    """How many chunks a sampling policy draws, and which of them it takes.

    Args:
        candidates: M chunks that are sampled together.
        select: what the candidates vote for: ``medoid``, ``density`` or ``first`` (see
            `ebt_policy.energy.selection`), or the likeliest by the ``line_integral`` of the field.
        level: of corruption at which the line integral judges finished candidates, in (0, 1), as
            an `EnergyPolicy` does.
    """

    candidates: int = 1
    select: Rule = "density"
    level: float = 0.5

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ConfigError(f"inference.candidates must be at least 1, got {self.candidates}.")
        if self.select not in (known := (*VOTES, "line_integral")):
            raise ConfigError(
                f"inference.select must be one of {', '.join(known)} for a policy without an "
                f"energy, got {self.select}."
            )
        if not 0 < self.level < 1:
            raise ConfigError(f"inference.level must lie between 0 and 1, got {self.level}.")


class SamplingPolicy(Policy):
    """Base of the policies that sample; ``inference`` is a `CandidateInference`."""

    net: Any

    @abstractmethod
    def sample(
        self, context: Any, noise: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Tensor:
        """Return chunks (B, M, T, A) in the network's units, sampled from ``noise``, as large."""

    @abstractmethod
    def score_field(self, context: Any, chunks: Tensor, level: float) -> Tensor:
        """Return the gradient of the negative log-likelihood of finished chunks (B, M, T, A).

        Args:
            level: of corruption at which the network judges them.
        """

    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        options = self.inference
        context = self.net.encode(obs)
        like = obs.new_empty(
            len(obs), options.candidates, self.shape.horizon, self.shape.action_dim
        )
        x = self.sample(context, draw_normal(like, generator), constraints, generator)
        x = self.constrain(x, constraints)  # what is chosen is what is executed
        used = torch.full((len(obs),), options.steps, device=obs.device)
        if options.candidates == 1:
            return Chunk(actions=x[:, 0], steps_used=used)
        if options.select == "line_integral":
            field = partial(self.score_field, context, level=options.level)
            score = line_integral(field, x, options.candidates)
        else:
            score = vote(options.select, x, options.candidates)
        rows = torch.arange(len(x), device=x.device)
        return Chunk(actions=x[rows, best_of(score, options.candidates)[:, 0]], steps_used=used)
