"""Products of trained policies.

A product has the density

    p(y | obs)  ~  prod_i p_i(y | obs)^w_i,   sum_i w_i = 1

Weights of 1/M give the geometric mean of policies that learned the same task from different data.
A negative weight moves away from what its member does (`without`), as classifier-free guidance
moves away from an unconditional model (Ho & Salimans 2022).

At level g, -log p_i is g / (1 - g) (E_i + |x|^2 / 2g) (see `Flow.score`). With weights that sum to
one, the quadratic terms are those of a single policy. So the product has the energy sum_i w_i E_i
and the velocity sum_i w_i v_i. At levels between noise and data, this is the product of the noisy
densities, which differs from the noisy product (Du et al. 2023, "Reduce, Reuse, Recycle");
`metropolis_steps` of an energy policy correct for it.

Shapes: B batch, M candidates, T horizon, A action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ebt_policy.errors import ConfigError
from ebt_policy.policies.base import Policy
from ebt_policy.policies.composition import Composition, MemberNets, equal_weights
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.flow_matching import FlowMatchingPolicy
from ebt_policy.policies.registry import POLICIES


class ProductNet(MemberNets):
    """The weighted sum of the members' energies or velocities, with the interface of a network.

    Members whose units differ see noise of another width, so that they are only approximately at
    the same level.

    Args:
        members: the policies.
        weights: their weights.
        is_energy: whether the networks of the members return energies.
    """

    def __init__(
        self, members: Sequence[Policy], weights: Sequence[float], *, is_energy: bool
    ) -> None:
        super().__init__(members)
        self.weights, self.is_energy = list(weights), is_energy

    def forward(self, contexts: list[Any], x: Tensor, level: Tensor | None = None) -> Tensor:
        """Return energies (B, M) or velocities (B, M, T, A) of candidates x at levels (B, M).

        A candidate x is s x + g o in the units of a member with scale s and offset o. So the
        member's velocity v' is s v + o for the common velocity v, and the energy whose negative
        gradient is v is E' / s^2 + <o, x> / s. Without levels, candidates are finished chunks, and
        there is no velocity of the offset.
        """
        total: Any = 0.0
        g = 1.0 if level is None else level[..., None, None]
        members = zip(self.policies, self.weights, contexts, strict=True)
        for i, (member, weight, context) in enumerate(members):
            value = member.net(context, self.to_own_units(i, x, g), level)
            scale, offset = self.scale[i], self.offset[i]
            if self.is_energy:
                # An energy has one scale for all dimensions: the geometric mean of their scales.
                value = value / scale.square().log().mean().exp()
                if level is not None:
                    value = value + (offset / scale * x).sum((-2, -1))
            else:
                value = (value - offset) / scale
            total = total + weight * value
        return total


@POLICIES.register("ebt_product")
class EnergyProduct(Composition, EnergyPolicy):
    """A product of energy policies; its energy is the weighted sum of their energies."""

    name = "ebt_product"
    net: ProductNet

    def __init__(self, members: Sequence[EnergyPolicy], weights: Sequence[float]) -> None:
        self._compose(members, weights)
        self.net = ProductNet(members, weights, is_energy=True)
        self.objective = members[0].objective
        self._has_teacher = any(member._has_teacher for member in members)
        self._compiled = None


@POLICIES.register("flow_matching_product")
class FlowMatchingProduct(Composition, FlowMatchingPolicy):
    """A product of flow-matching policies; its velocity is the weighted sum of theirs."""

    name = "flow_matching_product"
    net: ProductNet

    def __init__(self, members: Sequence[FlowMatchingPolicy], weights: Sequence[float]) -> None:
        self._compose(members, weights)
        self.net = ProductNet(members, weights, is_energy=False)


def product(
    members: Sequence[Policy], weights: Sequence[float] | None = None
) -> EnergyProduct | FlowMatchingProduct:
    """Return the product of energy policies or of flow-matching policies.

    It has the inference options of its first member. Candidates of energy policies are selected by
    the weighted sum of the energies.

    Args:
        members: at least two policies of the same kind for the same robot. Their data may differ.
        weights: their weights, which sum to 1; None for equal weights.

    Raises:
        ConfigError: the members or the weights do not fit together.

    >>> from ebt_policy.policies import load_policy
    >>> policy = load_policy("pretrained:push_t")
    >>> product([policy, policy]).weights
    [0.5, 0.5]
    """
    weights = equal_weights(members) if weights is None else weights
    flows = [member for member in members if isinstance(member, FlowMatchingPolicy)]
    if len(flows) == len(members):
        return FlowMatchingProduct(flows, weights)
    energies = [member for member in members if isinstance(member, EnergyPolicy)]
    if len(energies) < len(members):
        names = ", ".join(f"model={member.name}" for member in members)
        raise ConfigError(
            "the members of a product must all be model=ebt or all model=flow_matching; got "
            f"{names}."
        )
    return EnergyProduct(energies, weights)


def without(
    policy: Policy, other: Policy, strength: float = 1.0
) -> EnergyProduct | FlowMatchingProduct:
    """Return a policy that avoids what another policy does, p^(1 + s) / other^s.

    Args:
        policy, other: see `product`.
        strength: s, at least 0; 0 is the policy itself.

    Raises:
        ConfigError: see `product`, or the strength is negative.
    """
    if not strength >= 0:
        raise ConfigError(f"strength must not be negative, got {strength}.")
    return product([policy, other], [1 + strength, -strength])
