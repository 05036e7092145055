"""Metropolis-adjusted Langevin steps at a fixed level of a flow energy.

A sum of noisy energies is not the noisy version of their sum. So a descent of the sum does not
sample the product of the densities (Du et al. 2023, "Reduce, Reuse, Recycle"). Metropolis steps at
each level correct for it. They need an energy: a velocity field cannot decide which proposals to
accept.

Shapes: B batch, U units, * the shape of a unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.gradients import energy_gradient, expand_units
from ebt_policy.energy.sampling import Generators, draw_normal


@dataclass(frozen=True, eq=False)
class MetropolisLangevin:
    """Langevin proposals that are accepted by the Metropolis rule (Roberts & Tweedie 1996).

    The target is the density p_g of the level,

        -log p_g(x) = g / (1 - g) (E(x, g) + |x|^2 / 2g) + const   (see `Flow.score`).

    Args:
        count: number of steps at each level between noise and data.
        size: variance of a proposal is 2 size (1 - g)^2.
    """

    count: int
    size: float = 0.1

    def __post_init__(self) -> None:
        if self.count < 1 or not self.size > 0:
            raise ValueError(f"count and size must be positive, got {self.count} and {self.size}.")

    def __call__(
        self, energy: EnergyFn, x: Tensor, level: Tensor, generator: Generators = None
    ) -> Tensor:
        """Return candidates (B, U, *) after all steps.

        Args:
            energy: a level-conditioned energy.
            x: candidates (B, U, *).
            level: g in (0, 1), broadcastable to (B, U).
            generator: source of randomness; a list has one generator for each row.
        """
        g = level.expand(x.shape[:2])
        factor, size = g / (1 - g), expand_units(self.size * (1 - g).square(), x)

        def negative_log_density(x: Tensor, _: Tensor | None) -> Tensor:
            return factor * (energy(x, g) + x.square().flatten(2).sum(-1) / (2 * g))

        gradient, value = energy_gradient(negative_log_density, x)
        for _ in range(self.count):
            noise = draw_normal(x, generator)
            proposal = x - size * gradient + (2 * size).sqrt() * noise
            new_gradient, new_value = energy_gradient(negative_log_density, proposal)
            back = x - proposal + size * new_gradient
            # log q(x | proposal) - log q(proposal | x), of which the second is -|noise|^2 / 2
            asymmetry = (noise.square() / 2 - back.square() / (4 * size)).flatten(2).sum(-1)
            # The distribution function of a normal sample is uniform, and draw_normal draws by row.
            uniform = torch.special.ndtr(draw_normal(value, generator))
            accepted = uniform.log() < value - new_value + asymmetry
            keep = expand_units(accepted, x)
            x = torch.where(keep, proposal, x)
            gradient = torch.where(keep, new_gradient, gradient)
            value = torch.where(accepted, new_value, value)
        return x
