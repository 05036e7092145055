"""Mixtures of trained policies.

Shapes: B batch, M candidates of all members, A action dimension.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.selection import VOTES, vote
from ebt_policy.errors import ConfigError
from ebt_policy.policies.base import Policy
from ebt_policy.policies.candidates import Candidates, select_with_costs
from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.composition import Composition, MemberNets, equal_weights
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.registry import POLICIES


@POLICIES.register("mixture")
class Mixture(Composition):
    """A mixture of policies: each proposes its candidates, and one of all is selected.

    The density of the mixture is sum_i w_i p_i. Energies lack a normalising constant, which depends
    on the observation. So each member's scores are measured from their mean over its own
    candidates, which is exact for densities of equal entropy. Policies without an energy select by
    a vote.

    Args:
        members: at least two policies that sample candidates.
        weights: positive weights that sum to 1, for selection by ``energy``.
    """

    name = "mixture"
    supports_costs = True

    def __init__(self, members: Sequence[Policy], weights: Sequence[float]) -> None:
        if not min(weights, default=1.0) > 0:
            raise ConfigError(f"the weights of a mixture must be positive, got {list(weights)}.")
        # The options of a mixture must not change its members.
        members = [copy.copy(member) for member in members]
        self._compose(members, weights)
        self.net = MemberNets(members)
        self.configure_inference(**asdict(self.inference))

    def configure_inference(self, **changes: Any) -> None:
        for member in self.net.policies:
            member.configure_inference(**changes)
        self.inference = self.net.policies[0].inference
        if self.inference.select not in (rules := self._rules):
            raise ConfigError(
                f"inference.select={self.inference.select} is not available for a mixture of "
                f"model={self.net.policies[0].name}; use {', '.join(rules)}."
            )

    @property
    def _rules(self) -> tuple[str, ...]:
        is_energy = isinstance(self.net.policies[0], EnergyPolicy)
        return ("energy", *VOTES) if is_energy else VOTES

    def compile_prediction(self) -> None:
        for member in self.net.policies:
            member.compile_prediction()

    def _predict_normalized(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Chunk:
        sample = partial(self._sample_candidates, obs, constraints, generator)
        score = partial(self._selection_score, self.net.encode(obs))
        return select_with_costs(sample, score, constraints, self.inference.select)

    def _sample_candidates(
        self, obs: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Candidates:
        """Return the candidates of all members in common units, in the order of the members."""
        chunks, steps_used = [], []
        for i, (member, part) in enumerate(
            zip(self.net.policies, self.net.split(obs), strict=True)
        ):
            own = replace(self._constraints_of(i, constraints), keep_all=True)
            proposed = member._sample_candidates(part, own, generator)
            chunks.append(self.net.to_common_units(i, proposed.chunks))
            steps_used.append(proposed.steps_used)
        return Candidates(torch.cat(chunks, dim=1), torch.cat(steps_used, dim=1))

    def _selection_score(self, contexts: list[Any], candidates: Candidates) -> Tensor:
        """Return the score (B, M) of the selection rule; lower is better."""
        rule, chunks = self.inference.select, candidates.chunks
        if rule in VOTES:
            return vote(rule, chunks, chunks.shape[1])
        members, terms = self.net.policies, []
        # Each round has the candidates of all members, and `num_candidates` of each.
        proposer = torch.arange(chunks.shape[1]) // self.inference.num_candidates % len(members)
        for i, member in enumerate(members):
            energy = partial(member.net, contexts[i])
            own = self.net.to_own_units(i, chunks)
            scores = member.objective.score(energy, own, member.inference.scoring_level)
            scores = scores - scores[:, proposer == i].mean(1, keepdim=True)
            terms.append(math.log(self.weights[i]) - scores)
        return -torch.logsumexp(torch.stack(terms), dim=0)

    def _constraints_of(self, i: int, constraints: NormalizedConstraints) -> NormalizedConstraints:
        """Return constraints in the units of member i."""
        net, project, costs = self.net, constraints.project, constraints.costs

        def project_own(x: Tensor) -> Tensor:
            assert project is not None
            return net.to_own_units(i, project(net.to_common_units(i, x)))

        def to_env(x: Tensor) -> Tensor:
            assert costs is not None
            return costs.to_env(net.to_common_units(i, x))

        def own(x: Tensor | None) -> Tensor | None:
            return None if x is None else net.to_own_units(i, x)

        return replace(
            constraints,
            prefix=own(constraints.prefix),
            warm_start=own(constraints.warm_start),
            project=None if project is None else project_own,
            costs=None if costs is None else replace(costs, to_env=to_env),
        )


def mixture(members: Sequence[Policy], weights: Sequence[float] | None = None) -> Mixture:
    """Return the mixture of policies of the same kind (see `Mixture`).

    Args:
        members: at least two policies of the same kind for the same robot.
        weights: their positive weights, which sum to 1; None for equal weights.

    Raises:
        ConfigError: the members or the weights do not fit together.
    """
    return Mixture(members, equal_weights(members) if weights is None else weights)
