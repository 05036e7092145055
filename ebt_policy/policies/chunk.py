"""A predicted chunk of actions, and the interface of everything that predicts chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ebt_policy.energy.sampling import Generators
from ebt_policy.policies.policy_shape import PolicyShape

if TYPE_CHECKING:
    from ebt_policy.policies.chunk_constraints import ChunkConstraints


@dataclass
class Chunk:
    """A predicted chunk of actions.

    Attributes:
        actions: (B, T, A) in env units. Execution starts at index To - 1, with the action that
            follows the newest observation.
        steps_used: (B,) number of refinement passes.
        energy: (B,) final energy, lower is better; None for a policy without an energy.
        grad_norm: (B,) gradient norm at the last descent step; None for a policy without a descent.
        cost: (B,) sum of the costs of the constraints, in nats; None without costs.
    """

    actions: Tensor
    steps_used: Tensor
    energy: Tensor | None = None
    grad_norm: Tensor | None = None
    cost: Tensor | None = None


class PolicyUnavailable(Exception):
    """The error of a policy that cannot be reached now, and may be reachable again."""


class ChunkPredictor(Protocol):
    """Interface of a policy for a control loop: a `Policy`, or a policy on a server.

    Attributes:
        shape: dimensions of observations, actions and chunks.
        supports_costs: whether it has candidates that costs can move and select.
        is_available: whether it can be reached; a policy in this process always can.
    """

    @property
    def shape(self) -> PolicyShape: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def supports_costs(self) -> bool: ...

    @property
    def is_available(self) -> bool: ...

    @property
    def parameter_count(self) -> int: ...

    def predict_chunk(
        self,
        obs: dict[str, Tensor],
        *,
        constraints: ChunkConstraints | None = None,
        generator: Generators = None,
    ) -> Chunk:
        """Predict a chunk of actions, see `Policy.predict_chunk`.

        Raises:
            PolicyUnavailable: the policy cannot be reached.
        """
        ...
