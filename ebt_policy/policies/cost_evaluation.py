"""Costs as functions of chunks in network units.

Shapes: B batch, M candidates, T horizon, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebt_policy.energy.proximal import CostFn
from ebt_policy.policies.costs import CostError, CostFunction


@dataclass(frozen=True)
class ChunkCosts:
    """The sum of costs as a function of chunks in network units.

    Attributes:
        costs: functions of chunks in env units (see `ebt_policy.policies.costs`).
        obs: observation in env units.
        to_env: maps chunks (B, M, T, A) in network units to env units.
        first: index of the first action that is not executed yet.
    """

    costs: Sequence[CostFunction]
    obs: Mapping[str, Tensor]
    to_env: Callable[[Tensor], Tensor]
    first: int

    def total(self, chunks: Tensor) -> Tensor:
        """Return the sum of all costs (B, M) of chunks (B, M, T, A).

        Raises:
            CostError: a cost failed, or did not return finite numbers of at least 0.
        """
        actions = self.to_env(chunks)[:, :, self.first :]
        total = chunks.new_zeros(chunks.shape[:2])
        for cost in self.costs:
            total = total + _checked(cost, actions, self.obs)
        return total

    @property
    def differentiable(self) -> CostFn | None:
        """The sum of the differentiable costs, without checks; None if there are none."""
        costs = [cost for cost in self.costs if getattr(cost, "differentiable", False)]
        if not costs:
            return None

        def total(chunks: Tensor) -> Tensor:
            actions = self.to_env(chunks)[:, :, self.first :]
            values = [cost(actions, self.obs).to(actions) for cost in costs]
            return torch.stack(values).sum(0)

        return total

    def check_differentiable(self, chunks: Tensor) -> None:
        """Evaluate the differentiable costs of chunks (B, M, T, A) and their gradients.

        Raises:
            CostError: a cost failed, did not return finite numbers of at least 0, or has no
                gradient.
        """
        for cost in self.costs:
            if not getattr(cost, "differentiable", False):
                continue
            with torch.enable_grad():
                x = chunks.detach().requires_grad_()
                values = _checked(cost, self.to_env(x)[:, :, self.first :], self.obs)
                if values.requires_grad:
                    continue
            raise CostError(
                f"the cost {_name(cost)} is marked as differentiable, but has no gradient; compute "
                "it with PyTorch, or remove the attribute differentiable."
            )


def _name(cost: CostFunction) -> str:
    return getattr(cost, "__name__", type(cost).__name__)


def _checked(cost: CostFunction, actions: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
    """Return the values (B, M) of one cost.

    Raises:
        CostError: see `ChunkCosts.total`.
    """
    name = _name(cost)
    try:
        values = torch.as_tensor(cost(actions, obs)).to(actions)
    except Exception as error:  # A user's function may raise anything.
        raise CostError(f"the cost {name} failed ({type(error).__name__}: {error}).") from error
    if values.shape != actions.shape[:2]:
        raise CostError(
            f"the cost {name} must return one number for each chunk, {tuple(actions.shape[:2])}; "
            f"it returned the shape {tuple(values.shape)}."
        )
    if not bool((values >= 0).all() and values.isfinite().all()):  # False for NaN
        worst = values[~((values >= 0) & values.isfinite())][0]
        raise CostError(f"the cost {name} must return finite numbers of at least 0, got {worst}.")
    return values
