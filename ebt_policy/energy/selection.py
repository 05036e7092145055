"""Selecting one of several finished candidates: by an energy, or by a vote of the candidates.

Shapes: B batch, U units, M candidates of a unit, adjacent, * the shape of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ebt_policy.energy.result import DescentResult

Rule = Literal["energy", "energy_decrease", "medoid", "density", "line_integral", "first"]
VOTES = ("medoid", "density", "first")  # rules that need the candidates alone
ENERGY_RULES = ("energy", "energy_decrease", *VOTES)  # rules where candidates have energies
# Width of a kernel, as a share of the median distance: much wider ones join neighbouring modes
# (docs/experiments.md).
KERNEL_WIDTH = 0.25
# Gauss-Legendre nodes and weights on [0, 1]: exact for polynomials up to degree 7.
NODES = (0.0694318442, 0.3300094782, 0.6699905218, 0.9305681558)
WEIGHTS = (0.1739274226, 0.3260725774, 0.3260725774, 0.1739274226)


def select(
    result: DescentResult,
    num_candidates: int,
    score: str | Callable[[Tensor], Tensor] = "energy",
) -> DescentResult:
    """Return a result with the best of each unit's M adjacent candidates.

    Args:
        result: of a descent from candidates (B, U * M, *).
        num_candidates: M.
        score: ``energy``, the lowest final one; ``energy_decrease``, the largest; the candidates'
            `vote`: ``medoid``, ``density`` or ``first``; or a callable, candidates (B, U * M, *)
            -> scores (B, U * M), the lowest.

    Raises:
        ValueError: for an unknown score, a final energy that is missing, or a number of units that
            is not a multiple of M.
    """
    if not callable(score) and score not in ENERGY_RULES:
        raise ValueError(f"score must be one of {', '.join(ENERGY_RULES)}, got {score!r}.")
    units = result.candidate.shape[1]
    if num_candidates < 1 or units % num_candidates:
        raise ValueError(
            f"the {units} units are not a multiple of num_candidates={num_candidates}."
        )
    if num_candidates == 1:
        return result
    if score in ("energy", "energy_decrease") and not result.has_final_energy:
        raise ValueError(f"score={score} needs a descent with final_energy=True.")
    if callable(score):
        scores = score(result.candidate)
    elif score in VOTES:
        scores = vote(score, result.candidate, num_candidates)
    else:
        scores = result.energies[-1] if score == "energy" else -result.energy_decrease
    best = best_of(scores, num_candidates)  # (B, U)
    rows = torch.arange(len(best), device=best.device).unsqueeze(1)
    return DescentResult(
        candidate=result.candidate[rows, best],
        path=result.path,
        energies=result.energies[:, rows, best],
        grad_norms=result.grad_norms[:, rows, best],
        steps_used=result.steps_used[rows, best],
        energy_decrease=result.energy_decrease[rows, best],
        reason=result.reason[rows, best],
        selected_indices=best,
    )


def best_of(score: Tensor, num_candidates: int) -> Tensor:
    """Return the index among (U * M) of each unit's candidate with the lowest score.

    Args:
        score: (B, U * M).
        num_candidates: M.

    Returns:
        (B, U).
    """
    winner = score.unflatten(1, (-1, num_candidates)).argmin(-1)
    return torch.arange(winner.shape[1], device=winner.device) * num_candidates + winner


def vote(rule: str, x: Tensor, num_candidates: int) -> Tensor:
    """Return a score of each candidate, lower is better, from the other candidates alone.

    Args:
        rule: ``medoid``, the least mean distance to the others; ``density``, the highest density
            of Gaussian kernels of width `KERNEL_WIDTH` times the median distance between two;
            ``first``, the first.
        x: candidates (B, U * M, *).
        num_candidates: M.

    Returns:
        (B, U * M).

    Raises:
        ValueError: another rule.
    """
    if rule not in VOTES:
        raise ValueError(f"the rule of a vote must be one of {', '.join(VOTES)}, got {rule!r}.")
    groups = x.flatten(2).unflatten(1, (-1, num_candidates))  # (B, U, M, D)
    if rule == "first" or num_candidates == 1:
        order = torch.arange(num_candidates, device=x.device, dtype=x.dtype)
        return order.expand(groups.shape[:3]).flatten(1)
    # Not by matrix products, which lose what is close, nor with cdist, which does not compile.
    square = (groups.unsqueeze(3) - groups.unsqueeze(2)).square().sum(-1)  # (B, U, M, M)
    if rule == "medoid":
        return square.sqrt().mean(-1).flatten(1)
    off_diagonal = ~torch.eye(num_candidates, dtype=torch.bool, device=x.device)
    width = KERNEL_WIDTH**2 * square[..., off_diagonal].median(-1).values
    width = width.clamp(min=torch.finfo(x.dtype).tiny)[..., None, None]
    return -torch.logsumexp(-square / (2 * width), dim=-1).flatten(1)


def line_integral(field: Callable[[Tensor], Tensor], x: Tensor, num_candidates: int) -> Tensor:
    """Return the integral of a vector field along the line from a unit's mean to each candidate.

    Of a gradient field that is the difference of its potential, which a field without a potential
    only approximates: the integral then depends on the path.

    Args:
        field: points (B, V, *) -> vectors (B, V, *), of any number V of points.
        x: candidates (B, U * M, *).
        num_candidates: M.

    Returns:
        (B, U * M).
    """
    groups = x.unflatten(1, (-1, num_candidates))
    mean = groups.mean(2, keepdim=True).expand_as(groups).flatten(1, 2)
    offset = x - mean
    points = torch.cat([mean + node * offset for node in NODES], dim=1)
    projections = (field(points) * torch.cat([offset] * len(NODES), dim=1)).flatten(2).sum(-1)
    weights = torch.tensor(WEIGHTS, device=x.device, dtype=x.dtype)
    return (projections.unflatten(1, (len(NODES), -1)) * weights[:, None]).sum(1)
