"""Energies with known solutions, and other helpers for the tests of the descent.

Shapes: candidates (B, U, *) -> energies (B, U).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

from ebt_policy.energy import Descent, DescentResult, EnergyFn, FixedSteps
from ebt_policy.energy.objectives import S1, S2, Contrastive, EBTPolicy, Equilibrium, Flow
from ebt_policy.energy.sampling import Generators

few_examples = settings(max_examples=25, deadline=None, derandomize=True)
MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal samples in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def quadratic(curvature: float | Tensor = 1.0, centre: float | Tensor = 0.0):
    """Return the energy E = sum L (x - c)^2 / 2, with the gradient dE/dx = L (x - c)."""

    def energy(x: Tensor, level: Tensor | None = None) -> Tensor:
        return (curvature * (x - centre).square() / 2).flatten(2).sum(-1)

    return energy


def double_well(x: Tensor, level: Tensor | None = None) -> Tensor:
    """Return E = sum (x^2 - 1)^2 / 4, with minima 0 at -1 and 1 and a maximum 1/4 at 0."""
    return ((x.square() - 1).square() / 4).flatten(2).sum(-1)


def slope(x: Tensor, level: Tensor | None = None) -> Tensor:
    """Return E = -sum x, which has no minimum and the constant gradient (-1, ..., -1)."""
    return -x.flatten(2).sum(-1)


def level_quadratic(x: Tensor, level: Tensor | None) -> Tensor:
    """Return E = |x - g|^2 / 2, whose minimum is at the level g."""
    assert level is not None
    return (x - level.unsqueeze(-1)).square().sum(-1) / 2


def slow(energy: Callable[..., Tensor], seconds: float):
    """Return the same energy, with a delay of ``seconds`` in each evaluation."""

    def waiting(x: Tensor, level: Tensor | None = None) -> Tensor:
        time.sleep(seconds)
        return energy(x, level)

    return waiting


def descend(
    energy: EnergyFn,
    init: Tensor,
    count: int,
    size: float | Tensor,
    *,
    generator: Generators = None,
    **parts: Any,
) -> DescentResult:
    """Run a `Descent` of fixed steps; ``parts`` are its other parts."""
    return Descent(FixedSteps(count, size), **parts)(energy, init, generator=generator)


# Every objective, with options for which a training of seconds shows that it learns.
SMALL_OBJECTIVES = {
    "flow": lambda: Flow(),
    "flow without level": lambda: Flow(condition_on_noise_level=False, noise_samples_per_target=2),
    "equilibrium": lambda: Equilibrium(),
    "s1": lambda: S1(),
    "s2": lambda: S2(steps=(2, 2), replay=0),
    "ebt_policy": lambda: EBTPolicy(
        steps=(2, 4), step_size=36.0, momentum=0.5, normalization="none"
    ),
    "contrastive": lambda: Contrastive(negatives=4, steps=2),
}
