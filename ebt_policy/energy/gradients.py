"""The gradient of an energy at a candidate, in every mode that autograd can be in.

Shapes: B batch, U units, * the shape of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value

EnergyFn = Callable[[Tensor, Tensor | None], Tensor]
"""Energy of candidates (B, U, *) at levels (B, U) or None -> (B, U); units must be independent."""


@dataclass(frozen=True)
class BilinearEnergy:
    """E(x) = -<x, f(x)>: low where a candidate agrees with what a network makes of it.

    Its gradient is -f(x) - J_f^T x; where x is zero it is -f(0), and needs no backward pass.

    Attributes:
        field: candidates (B, U, *) and levels (B, U) or None -> f, (B, U, *).
    """

    field: Callable[[Tensor, Tensor | None], Tensor]

    def __call__(self, x: Tensor, level: Tensor | None) -> Tensor:
        return -(x * self.field(x, level)).flatten(2).sum(-1)


@dataclass(frozen=True)
class DirectUpdate:
    """Stands where an energy does and has no energy: a network that gives the update itself.

    Attributes:
        field: candidates (B, U, *) and levels (B, U) or None -> what is to be added, (B, U, *).
    """

    field: Callable[[Tensor, Tensor | None], Tensor]

    def __call__(self, x: Tensor, level: Tensor | None) -> Tensor:
        """Zero, wherever it is asked for."""
        return x.new_zeros(x.shape[:2])


def to_autograd_tensor(x: Tensor) -> Tensor:
    """Inference tensors cannot enter a gradient; their copies can."""
    # torch.compile cannot ask, and would leave the whole descent uncompiled in silence.
    return x.clone() if not torch.compiler.is_compiling() and x.is_inference() else x


def energy_gradient(
    energy: EnergyFn, x: Tensor, level: Tensor | None = None, *, zero: bool = False
) -> tuple[Tensor, Tensor]:
    """Gradient (B, U, *) and energy (B, U) at candidates x (B, U, *), which are known to be zero or
    not.

    With gradients on, both are differentiable in the energy's parameters and in x. Without, only
    the first derivative is computed. Compiled or not, the values are the same.

    Raises:
        ValueError: if the energy does not give one number a unit.
    """
    told = None if level is None else level.expand(x.shape[:2])
    if isinstance(energy, DirectUpdate) or (zero and isinstance(energy, BilinearEnergy)):
        return -energy.field(x, told), x.new_zeros(x.shape[:2])

    def total(candidate: Tensor) -> tuple[Tensor, Tensor]:
        value = energy(candidate, told)
        if value.shape != x.shape[:2]:
            raise ValueError(
                f"the energy must be {tuple(x.shape[:2])}, one a unit; got {tuple(value.shape)}."
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
    with torch.enable_grad():  # first derivative only: no graph of the gradient is built
        leaf = x.detach().requires_grad_()
        summed, value = total(leaf)
    return torch.autograd.grad(summed, leaf)[0], value.detach()


def shared_gradient(
    energy: EnergyFn, x: Tensor, level: Tensor | None, candidates: int
) -> tuple[Tensor, Tensor]:
    """As `energy_gradient`, from one evaluation for each ``candidates`` adjacent units.

    For an energy that is |x|^2 / 2 - <c, x> + b, with a c that candidates share: the gradient x - c
    is known everywhere once it is known at zero.
    """
    slope, value = energy_gradient(energy, torch.zeros_like(x[:, ::candidates]), level)
    slope = slope.repeat_interleave(candidates, dim=1)
    rise = (x.square() / 2 + slope * x).flatten(2).sum(-1)
    return x + slope, value.repeat_interleave(candidates, dim=1) + rise
