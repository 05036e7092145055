"""Gradients of an energy at candidates, and the rules by which a descent computes them.

Shapes: B batch, U units, M adjacent candidates of a unit, * the shape of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import grad_and_value

from ebt_policy.energy.energy_function import BilinearEnergy, DirectUpdate, EnergyFn


@dataclass(frozen=True, eq=False)
class PlainGradient:
    """The gradient of the energy, evaluated at every candidate."""

    def __call__(
        self, energy: EnergyFn, x: Tensor, level: Tensor | None, *, first: bool
    ) -> tuple[Tensor, Tensor]:
        """Return gradient (B, U, *) and energy (B, U).

        Args:
            energy: see `EnergyFn`.
            x: candidates (B, U, *).
            level: levels, broadcastable to (B, U); None without levels.
            first: whether this is the first step of a descent.
        """
        return energy_gradient(energy, x, level)


@dataclass(frozen=True, eq=False)
class SharedFirstGradient(PlainGradient):
    """A gradient that evaluates the energy once for the first step of all M candidates of a unit.

    The energy must be quadratic at the start (see `broadcast_initial_gradient`).

    Args:
        num_candidates: M.
    """

    num_candidates: int

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {self.num_candidates}.")

    def __call__(
        self, energy: EnergyFn, x: Tensor, level: Tensor | None, *, first: bool
    ) -> tuple[Tensor, Tensor]:
        if first:
            return broadcast_initial_gradient(energy, x, level, self.num_candidates)
        return energy_gradient(energy, x, level)


@dataclass(frozen=True, eq=False)
class ZeroInitGradient(PlainGradient):
    """A gradient for descents whose initial candidates are zero.

    The first gradient of a `BilinearEnergy` then needs no backward pass.
    """

    def __call__(
        self, energy: EnergyFn, x: Tensor, level: Tensor | None, *, first: bool
    ) -> tuple[Tensor, Tensor]:
        return energy_gradient(energy, x, level, zero=first)


@dataclass(frozen=True, eq=False)
class CompiledGradient(PlainGradient):
    """A gradient that is compiled by itself, so that one graph serves descents of every length.

    Attributes:
        compiled: `energy_gradient`, compiled.
    """

    compiled: Callable[..., tuple[Tensor, Tensor]] = field(
        default_factory=lambda: torch.compile(energy_gradient)
    )

    def __call__(
        self, energy: EnergyFn, x: Tensor, level: Tensor | None, *, first: bool
    ) -> tuple[Tensor, Tensor]:
        return self.compiled(energy, x, level)


def to_autograd_tensor(x: Tensor) -> Tensor:
    """Return x, or a copy if x is an inference tensor, which autograd cannot use."""
    # torch.compile cannot trace is_inference(): it would silently not compile the descent.
    return x.clone() if not torch.compiler.is_compiling() and x.is_inference() else x


def expand_units(per_unit: Tensor, x: Tensor) -> Tensor:
    """Reshape (B, U) to (B, U, 1, ...), which broadcasts with x (B, U, *)."""
    return per_unit.reshape(*per_unit.shape, *(1 for _ in x.shape[2:]))


def energy_gradient(
    energy: EnergyFn, x: Tensor, level: Tensor | None = None, *, zero: bool = False
) -> tuple[Tensor, Tensor]:
    """Return gradient (B, U, *) and energy (B, U) at candidates x (B, U, *).

    With gradients enabled, both are differentiable in the energy's parameters and in x. Otherwise
    only the first derivative is computed. Compiled code returns the same values.

    Args:
        energy: see `EnergyFn`.
        x: (B, U, *).
        level: levels, broadcastable to (B, U); None without levels.
        zero: whether x is known to be zero.

    Raises:
        ValueError: if the energy does not return one number per unit.
    """
    levels = None if level is None else level.expand(x.shape[:2])
    if isinstance(energy, DirectUpdate) or (zero and isinstance(energy, BilinearEnergy)):
        return -energy.field(x, levels), x.new_zeros(x.shape[:2])

    def total(candidate: Tensor) -> tuple[Tensor, Tensor]:
        value = energy(candidate, levels)
        if value.shape != x.shape[:2]:
            raise ValueError(
                f"the energy must have shape {tuple(x.shape[:2])}, one value per unit; got "
                f"{tuple(value.shape)}."
            )
        # Units are independent, so the gradient of the sum is the gradient of each.
        return value.sum(), value

    if torch.compiler.is_compiling():
        # torch.func traces under torch.compile, where autograd.grad(create_graph=True) does not.
        # The traced gradient must not depend on an outer no_grad, hence enable_grad and detach.
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            gradient, (_, value) = grad_and_value(total, has_aux=True)(x)
        return (gradient, value) if differentiable else (gradient.detach(), value.detach())
    if torch.is_grad_enabled():
        gradient, (_, value) = grad_and_value(total, has_aux=True)(x)
        return gradient, value
    with torch.enable_grad():  # first derivative only, so no graph of the gradient is built
        leaf = x.detach().requires_grad_()
        summed, value = total(leaf)
    return torch.autograd.grad(summed, leaf)[0], value.detach()


def broadcast_initial_gradient(
    energy: EnergyFn, x: Tensor, level: Tensor | None, num_candidates: int
) -> tuple[Tensor, Tensor]:
    """Return the result of `energy_gradient` from one evaluation for M adjacent candidates.

    The energy must be |x|^2 / 2 - <c, x> + b, with a c that the candidates of a unit share. Its
    gradient x - c at any x then follows from its gradient at zero.

    Raises:
        ValueError: if the number of candidates is not a multiple of M.
    """
    if x.shape[1] % num_candidates:
        raise ValueError(
            f"candidates must be (B, U * {num_candidates}, ...), a multiple of "
            f"num_candidates={num_candidates}; got {tuple(x.shape)}."
        )
    gradient, value = energy_gradient(energy, torch.zeros_like(x[:, ::num_candidates]), level)
    gradient = gradient.repeat_interleave(num_candidates, dim=1)
    rise = (x.square() / 2 + gradient * x).flatten(2).sum(-1)
    return x + gradient, value.repeat_interleave(num_candidates, dim=1) + rise
