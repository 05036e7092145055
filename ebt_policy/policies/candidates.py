"""Candidate chunks of a policy, and their selection by energy and cost.

Shapes: B batch, M candidates, T horizon, A action dimension.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ebt_policy.energy.selection import Rule
from ebt_policy.errors import ConfigError
from ebt_policy.policies.chunk import Chunk
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.cost_evaluation import ChunkCosts

# Rules whose scores are negative log-likelihoods in nats, or energies: they add up with costs.
ADDITIVE_RULES = ("energy", "line_integral", "density")


class Candidates(NamedTuple):
    """Candidate chunks of a batch of observations.

    Attributes:
        chunks: (B, M, T, A) in network units, within all limits.
        steps_used: (B, M) number of refinement passes.
        energy: (B, M); None for a policy without an energy.
        grad_norm: (B, M); None for a policy without a descent.
        energy_decrease: (B, M); None for a policy without a descent.
    """

    chunks: Tensor
    steps_used: Tensor
    energy: Tensor | None = None
    grad_norm: Tensor | None = None
    energy_decrease: Tensor | None = None

    def join(self, other: Candidates) -> Candidates:
        """Return the candidates of both."""

        def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else torch.cat([a, b], dim=1)

        return Candidates(
            torch.cat([self.chunks, other.chunks], dim=1),
            torch.cat([self.steps_used, other.steps_used], dim=1),
            both(self.energy, other.energy),
            both(self.grad_norm, other.grad_norm),
            both(self.energy_decrease, other.energy_decrease),
        )


def sample_until_met(
    sample: Callable[[], Candidates],
    costs: ChunkCosts,
    max_rounds: int,
    deadline_s: float | None,
) -> tuple[Candidates, Tensor]:
    """Sample candidates until each row has one of cost zero.

    Args:
        sample: returns M new candidates.
        costs: the costs.
        max_rounds: number of calls of ``sample`` at most.
        deadline_s: stop before a call that is predicted to end later, by the slowest call so far.

    Returns:
        All candidates, and their costs (B, number of candidates).
    """
    start, candidates, total, slowest = time.perf_counter(), None, None, 0.0
    for _ in range(max_rounds):
        elapsed = time.perf_counter() - start
        if total is not None:
            late = deadline_s is not None and elapsed + slowest > deadline_s
            if late or bool((total.min(1).values <= 0).all()):
                break
        new = sample()
        cost = costs.total(new.chunks)
        slowest = max(slowest, time.perf_counter() - start - elapsed)
        candidates = new if candidates is None else candidates.join(new)
        total = cost if total is None else torch.cat([total, cost], dim=1)
    assert candidates is not None and total is not None
    return candidates, total


def choose(score: Tensor, cost: Tensor, budget_nats: float | None, *, in_nats: bool) -> Tensor:
    """Return the index (B,) of the candidate to execute.

    With a budget, it has the lowest cost among the candidates whose score is at most the budget
    above the lowest score; of equal costs, the lower score wins. Without a budget, it has the
    lowest sum of score and cost. Scores that are not in nats only decide between equal costs.

    Args:
        score: (B, M), lower is better.
        cost: (B, M) in nats.
        budget_nats: see `ChunkConstraints`.
        in_nats: whether the scores are negative log-likelihoods.

    >>> score, cost = torch.tensor([[0.0, 2.0, 9.0]]), torch.tensor([[5.0, 4.0, 0.0]])
    >>> [int(choose(score, cost, budget, in_nats=True)) for budget in (1.0, 2.0, 9.0, None)]
    [0, 1, 2, 0]
    """
    if budget_nats is not None:
        allowed = score <= score.min(1, keepdim=True).values + budget_nats
        cost = cost.masked_fill(~allowed, torch.inf)
    elif in_nats:
        return (score + cost).argmin(1)
    lowest = cost == cost.min(1, keepdim=True).values
    return score.masked_fill(~lowest, torch.inf).argmin(1)


def to_chunk(candidates: Candidates, index: Tensor, cost: Tensor | None = None) -> Chunk:
    """Return the selected candidate of each row as a chunk.

    Args:
        candidates: M candidates in each row.
        index: (B,).
        cost: (B, M) costs of the candidates; None without costs.
    """
    rows = torch.arange(len(index), device=index.device)

    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows, index]

    return Chunk(
        candidates.chunks[rows, index], candidates.steps_used[rows, index],
        pick(candidates.energy), pick(candidates.grad_norm), pick(cost),
    )  # fmt: skip


def select_with_costs(
    sample: Callable[[], Candidates],
    score: Callable[[Candidates], Tensor],
    constraints: NormalizedConstraints,
    rule: Rule,
) -> Chunk:
    """Sample candidates and return the best one by score and costs (see `ChunkConstraints`).

    Args:
        sample: returns M new candidates.
        score: maps candidates to the scores (B, M) of the selection rule.
        constraints: costs, or none, and the rules of the selection.
        rule: the selection rule.

    Raises:
        ConfigError: the rule does not support a budget.
    """
    if constraints.costs is None:
        candidates = sample()
        if candidates.chunks.shape[1] == 1:  # A score would be wasted.
            return to_chunk(candidates, candidates.steps_used.new_zeros(len(candidates.chunks)))
        return to_chunk(candidates, score(candidates).argmin(1))
    in_nats = rule in ADDITIVE_RULES
    if constraints.budget_nats is not None and not in_nats:
        raise ConfigError(
            f"budget_nats needs inference.select={' or '.join(ADDITIVE_RULES)}, got select={rule}."
        )
    candidates, cost = sample_until_met(
        sample, constraints.costs, constraints.max_rounds, constraints.deadline_s
    )
    index = choose(score(candidates), cost, constraints.budget_nats, in_nats=in_nats)
    return to_chunk(candidates, index, cost)
