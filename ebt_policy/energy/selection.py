"""Selection of one of several finished candidates, by an energy or by a vote of the candidates.

Shapes: B batch, U units, M adjacent candidates of a unit, * the shape of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ebt_policy.energy.result import DescentResult

Rule = Literal["energy", "energy_decrease", "medoid", "density", "line_integral", "first"]
VOTES = ("medoid", "density", "first")  # rules that need only the candidates
ENERGY_RULES = ("energy", "energy_decrease", *VOTES)  # rules for candidates with energies
# Kernel width as a fraction of the median distance. Much wider kernels merge neighbouring modes
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
        result: result of a descent from candidates (B, U * M, *).
        num_candidates: M.
        score: ``energy`` selects the lowest final energy, and ``energy_decrease`` the largest
            decrease. ``medoid``, ``density`` and ``first`` are rules of `vote`. A callable maps
            candidates (B, U * M, *) to scores (B, U * M), and the lowest score is selected.

    Raises:
        ValueError: if the score is unknown, the final energy is missing, or the number of units is
            not a multiple of M.
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
    else:
        scores = rule_scores(
            score, result.candidate, num_candidates, result.energies[-1], result.energy_decrease
        )
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


def rule_scores(
    rule: str, x: Tensor, num_candidates: int, energy: Tensor, energy_decrease: Tensor
) -> Tensor:
    """Return the scores (B, U * M) of one of the `ENERGY_RULES`; lower is better.

    Args:
        rule: name of the rule.
        x: candidates (B, U * M, *).
        num_candidates: M.
        energy: (B, U * M) final energies.
        energy_decrease: (B, U * M).
    """
    if rule in VOTES:
        return vote(rule, x, num_candidates)
    return energy if rule == "energy" else -energy_decrease


def best_of(score: Tensor, num_candidates: int) -> Tensor:
    """Return the indices of the candidates with the lowest score of each unit.

    Args:
        score: (B, U * M).
        num_candidates: M.

    Returns:
        Indices (B, U) in the range of the U * M candidates.

    >>> best_of(torch.tensor([[3.0, 1.0, 2.0, 5.0, 6.0, 4.0]]), num_candidates=3)
    tensor([[1, 5]])
    """
    winner = score.unflatten(1, (-1, num_candidates)).argmin(-1)
    return torch.arange(winner.shape[1], device=winner.device) * num_candidates + winner


def vote(rule: str, x: Tensor, num_candidates: int) -> Tensor:
    """Return a score of each candidate that depends only on the candidates of its unit.

    Args:
        rule: ``medoid`` scores by the mean distance to the others. ``density`` scores by the
            negative log density of Gaussian kernels, whose width is `KERNEL_WIDTH` times the median
            distance between two candidates. ``first`` selects the first candidate.
        x: candidates (B, U * M, *).
        num_candidates: M.

    Returns:
        Scores (B, U * M); lower is better.

    Raises:
        ValueError: if the rule is unknown.

    >>> candidates = torch.tensor([0.0, 1.0, 5.0]).view(1, 3, 1)
    >>> vote("medoid", candidates, num_candidates=3).argmin().item()
    1
    """
    if rule not in VOTES:
        raise ValueError(f"the rule of a vote must be one of {', '.join(VOTES)}, got {rule!r}.")
    groups = x.flatten(2).unflatten(1, (-1, num_candidates))  # (B, U, M, D)
    if rule == "first" or num_candidates == 1:
        order = torch.arange(num_candidates, device=x.device, dtype=x.dtype)
        return order.expand(groups.shape[:3]).flatten(1)
    # Matrix products would lose the precision of small distances, and cdist does not compile.
    square = (groups.unsqueeze(3) - groups.unsqueeze(2)).square().sum(-1)  # (B, U, M, M)
    if rule == "medoid":
        return square.sqrt().mean(-1).flatten(1)
    off_diagonal = ~torch.eye(num_candidates, dtype=torch.bool, device=x.device)
    distances = square[..., off_diagonal].sort(-1).values
    median = distances[..., (distances.shape[-1] - 1) // 2]  # ONNX has no median
    width = KERNEL_WIDTH**2 * median
    width = width.clamp(min=torch.finfo(x.dtype).tiny)[..., None, None]
    return -torch.logsumexp(-square / (2 * width), dim=-1).flatten(1)


def line_integral(field: Callable[[Tensor], Tensor], x: Tensor, num_candidates: int) -> Tensor:
    """Return the integral of a vector field along the line from a unit's mean to each candidate.

    For a gradient field, the integral is the difference of its potential. Other fields have no
    potential, and the integral depends on the path.

    Args:
        field: maps points (B, V, *) to vectors (B, V, *), for any number V of points.
        x: candidates (B, U * M, *).
        num_candidates: M.

    Returns:
        Integrals (B, U * M).
    """
    groups = x.unflatten(1, (-1, num_candidates))
    mean = groups.mean(2, keepdim=True).expand_as(groups).flatten(1, 2)
    offset = x - mean
    points = torch.cat([mean + node * offset for node in NODES], dim=1)
    projections = (field(points) * torch.cat([offset] * len(NODES), dim=1)).flatten(2).sum(-1)
    weights = torch.tensor(WEIGHTS, device=x.device, dtype=x.dtype)
    return (projections.unflatten(1, (len(NODES), -1)) * weights[:, None]).sum(1)
