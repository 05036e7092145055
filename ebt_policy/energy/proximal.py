"""Costs on the end of a path: the point between a predicted end and the minimum of a cost.

A level-conditioned field predicts the end y of a path from a candidate at level g. Given the
candidate, the end has a distribution around y. If its density is multiplied by exp(-cost), the most
likely end is the proximal point of the cost. For normal data and a quadratic cost, following these
ends samples the normalised product exactly; for other costs, it is an approximation (compare Song
et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems").

Shapes: B batch, U units, * the shape of a unit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebt_policy.energy.gradients import energy_gradient, expand_units

CostFn = Callable[[Tensor], Tensor]
"""Maps finished candidates (B, U, *) to costs (B, U), at least 0, in the unit of the energy."""

ITERATIONS = 4


def end_variance(level: Tensor) -> Tensor:
    """Return the variance of the end of a path, given a candidate at levels g < 1.

    The data has unit variance: a candidate is x = g y + (1 - g) n with normal y and n, so the
    variance of y given x is (1 - g)^2 / (g^2 + (1 - g)^2).

    >>> end_variance(torch.tensor([0.0, 0.5])).tolist()
    [1.0, 0.5]
    """
    return (1 - level).square() / (level.square() + (1 - level).square())


def proximal_point(cost: CostFn, y: Tensor, variance: Tensor) -> Tensor:
    """Return an approximate minimum z of cost(z) + |z - y|^2 / (2 variance).

    It takes `ITERATIONS` gradient steps. The first one is at most as long as the step after which a
    linear cost would be zero (Polyak 1987). The sizes of the others are estimated from the last two
    gradients (Barzilai and Borwein 1988). The best of all points is returned, so the sum is never
    larger than the cost of y.

    Args:
        cost: see `CostFn`; differentiable.
        y: (B, U, *).
        variance: positive, broadcastable to (B, U). A small one keeps z close to y.

    >>> def cost(y): return (y - 3).square().sum(-1)   # |z - 3|^2 + |z|^2 / 2 is smallest at 2
    >>> proximal_point(cost, torch.zeros(1, 1, 1), torch.tensor(1.0)).item()
    2.0
    """
    variance = variance.expand(y.shape[:2])

    def objective(z: Tensor, _: Tensor | None) -> Tensor:
        return cost(z) + (z - y).square().flatten(2).sum(-1) / (2 * variance)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(2).sum(-1)

    z, best = y, y
    gradient, value = energy_gradient(objective, z)
    lowest = value
    size = torch.minimum(variance, value / dot(gradient, gradient).clamp(min=1e-12))
    for k in range(ITERATIONS):
        moved = z - expand_units(size, z) * gradient
        new_gradient, value = energy_gradient(objective, moved)
        best = torch.where(expand_units(value < lowest, z), moved, best)
        lowest = torch.minimum(value, lowest)
        if k + 1 < ITERATIONS:
            step, change = moved - z, new_gradient - gradient
            curvature = dot(step, change) / dot(step, step).clamp(min=1e-12)
            # The objective is at least as curved as its second term.
            size = 1 / torch.maximum(curvature, 1 / variance)
            z, gradient = moved, new_gradient
    return best
