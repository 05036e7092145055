"""Choosing one of several finished candidates: by an energy, or by a vote of the candidates alone.

Shapes: B batch, U units, M candidates of a unit, adjacent, * the shape of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["energy", "drop", "medoid", "density", "line_integral", "first"]
VOTES = ("medoid", "density", "first")  # rules that ask for the candidates and nothing else
WITH_ENERGY = ("energy", "drop", *VOTES)  # rules where candidates have energies
# Width of a kernel, as a share of the median distance: much wider ones join neighbouring modes
# (docs/experiments.md).
WIDTH = 0.25
# Gauss-Legendre nodes and weights on [0, 1]: exact for polynomials up to degree 7.
NODES = (0.0694318442, 0.3300094782, 0.6699905218, 0.9305681558)
WEIGHTS = (0.1739274226, 0.3260725774, 0.3260725774, 0.1739274226)


def best_of(score: Tensor, candidates: int) -> Tensor:
    """Return the index among (U * M) of each unit's candidate with the lowest score.

    Args:
        score: (B, U * M).
        candidates: M.

    Returns:
        (B, U).
    """
    winner = score.unflatten(1, (-1, candidates)).argmin(-1)
    return torch.arange(winner.shape[1], device=winner.device) * candidates + winner


def vote(rule: str, x: Tensor, candidates: int) -> Tensor:
    """Return a score of each candidate, lower is better, from the other candidates alone.

    Args:
        rule: ``medoid``, the least mean distance to the others; ``density``, the highest density
            of Gaussian kernels, whose width is `WIDTH` times the median distance between two;
            ``first``, the first.
        x: candidates (B, U * M, *).
        candidates: M.

    Returns:
        (B, U * M).

    Raises:
        ValueError: another rule.
    """
    if rule not in VOTES:
        raise ValueError(f"the rule of a vote must be one of {', '.join(VOTES)}, got {rule!r}.")
    groups = x.flatten(2).unflatten(1, (-1, candidates))  # (B, U, M, D)
    if rule == "first" or candidates == 1:
        order = torch.arange(candidates, device=x.device, dtype=x.dtype)
        return order.expand(groups.shape[:3]).flatten(1)
    # Not by matrix products, which lose what is close, nor with cdist, which does not compile.
    square = (groups.unsqueeze(3) - groups.unsqueeze(2)).square().sum(-1)  # (B, U, M, M)
    if rule == "medoid":
        return square.sqrt().mean(-1).flatten(1)
    apart = ~torch.eye(candidates, dtype=torch.bool, device=x.device)
    width = WIDTH**2 * square[..., apart].median(-1).values
    width = width.clamp(min=torch.finfo(x.dtype).tiny)[..., None, None]
    return -torch.logsumexp(-square / (2 * width), dim=-1).flatten(1)


def line_integral(field: Callable[[Tensor], Tensor], x: Tensor, candidates: int) -> Tensor:
    """Return the integral of a vector field along the line from a unit's mean to each candidate.

    Of a gradient field that is the difference of its potential, which a field without a potential
    only approximates: the integral then depends on the path.

    Args:
        field: points (B, V, *) -> vectors (B, V, *), of any number V of points.
        x: candidates (B, U * M, *).
        candidates: M.

    Returns:
        (B, U * M).
    """
    groups = x.unflatten(1, (-1, candidates))
    mean = groups.mean(2, keepdim=True).expand_as(groups).flatten(1, 2)
    way = x - mean
    points = torch.cat([mean + node * way for node in NODES], dim=1)
    along = (field(points) * torch.cat([way] * len(NODES), dim=1)).flatten(2).sum(-1)
    weights = torch.tensor(WEIGHTS, device=x.device, dtype=x.dtype)
    return (along.unflatten(1, (len(NODES), -1)) * weights[:, None]).sum(1)
