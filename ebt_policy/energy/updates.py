"""Update rules, which turn a gradient into the displacement of a candidate.

Shapes: B batch, U units, * the shape of a unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ebt_policy.energy.gradients import expand_units


@dataclass(frozen=True, eq=False)
class GradientStep:
    """The plain step: -size * gradient."""

    def look_ahead(self, x: Tensor, velocity: Tensor) -> Tensor:
        """Return the points (B, U, *) at which the gradient is evaluated.

        Args:
            x: candidates (B, U, *).
            velocity: (B, U, *) displacement of the previous step, zeros before the first.
        """
        return x

    def __call__(
        self, gradient: Tensor, norm: Tensor, energy: Tensor, velocity: Tensor, size: Tensor
    ) -> Tensor:
        """Return the displacement (B, U, *) of one step.

        Args:
            gradient: (B, U, *) gradient of the energy.
            norm: (B, U) Euclidean norm of each unit's gradient.
            energy: (B, U) energies at which the gradient was evaluated.
            velocity: as in `look_ahead`.
            size: step size, broadcastable to (B, U).
        """
        return -(expand_units(size, gradient) * gradient)


@dataclass(frozen=True, eq=False)
class NesterovMomentum(GradientStep):
    """Nesterov's momentum, with the gradient at the look-ahead point x + mu v.

    Args:
        momentum: mu, in [0, 1).
    """

    momentum: float

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}.")

    def look_ahead(self, x: Tensor, velocity: Tensor) -> Tensor:
        return x + self.momentum * velocity

    def __call__(
        self, gradient: Tensor, norm: Tensor, energy: Tensor, velocity: Tensor, size: Tensor
    ) -> Tensor:
        return self.momentum * velocity - expand_units(size, gradient) * gradient


@dataclass(frozen=True, eq=False)
class ClippedGradient(GradientStep):
    """A plain step along a gradient whose norm is clipped separately for each unit.

    Args:
        max_norm: largest norm of a unit's gradient; positive.
    """

    max_norm: float

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {self.max_norm}.")

    def __call__(
        self, gradient: Tensor, norm: Tensor, energy: Tensor, velocity: Tensor, size: Tensor
    ) -> Tensor:
        factor = (self.max_norm / (norm + 1e-12)).clamp(max=1.0)
        clipped = gradient * expand_units(factor, gradient)
        return super().__call__(clipped, norm, energy, velocity, size)


@dataclass(frozen=True, eq=False)
class EnergyScaledStep(GradientStep):
    """A step whose size is multiplied by exp(energy) / temperature (Davies et al. 2025).

    Candidates of high energy take longer steps. The energy is not detached, so that training with a
    loss on the next candidate also trains the energy itself.

    Args:
        update: the update whose step size is scaled.
        temperature: positive.
    """

    update: GradientStep
    temperature: float

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}.")

    def look_ahead(self, x: Tensor, velocity: Tensor) -> Tensor:
        return self.update.look_ahead(x, velocity)

    def __call__(
        self, gradient: Tensor, norm: Tensor, energy: Tensor, velocity: Tensor, size: Tensor
    ) -> Tensor:
        scaled = size * energy.exp() / self.temperature
        return self.update(gradient, norm, energy, velocity, scaled)
