"""Base of policies composed of trained policies (see `products` and `mixtures`).

Shapes: B batch, M candidates, T horizon, A action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.errors import ConfigError
from ebt_policy.policies.base import Policy
from ebt_policy.policies.registry import build_policy

# Members whose units differ by more than this factor were trained for different motions.
LARGEST_UNIT_RATIO = 2.0
LARGEST_OFFSET = 2.0  # between the means of their actions, in units of spread
SHARED_DIMENSIONS = (
    "obs_dim", "action_dim", "horizon", "n_obs_steps", "n_action_steps", "relative_to", "cameras",
)  # fmt: skip


class MemberNets(nn.Module):
    """The members of a composed policy, and the maps between their units.

    Candidates are in the network units of the first member. A candidate y is scale * y + offset in
    the units of another member.

    Args:
        members: the policies.

    Raises:
        ConfigError: their units differ too much.
    """

    def __init__(self, members: Sequence[Policy]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        units = [_units(members[0].normalizer, m.normalizer, i) for i, m in enumerate(members)]
        self.scale: Tensor  # (number of members, A)
        self.offset: Tensor
        self.register_buffer("scale", torch.stack([s for s, _ in units]), persistent=False)
        self.register_buffer("offset", torch.stack([o for _, o in units]), persistent=False)

    @property
    def policies(self) -> list[Any]:
        """The members."""
        return list(self.members)

    def to_own_units(self, i: int, x: Tensor, level: Tensor | float = 1.0) -> Tensor:
        """Return candidates x (..., A) at a level in the units of member i."""
        return self.scale[i] * x + level * self.offset[i]

    def to_common_units(self, i: int, chunks: Tensor) -> Tensor:
        """Return finished chunks (..., A) in the units of member i in common units."""
        return (chunks - self.offset[i]) / self.scale[i]

    def split(self, features: Tensor) -> list[Tensor]:
        """Split the concatenated features of all members, see `Composition`."""
        widths = [member.network_shape.obs_dim for member in self.policies]
        return list(features.split(widths, dim=-1))

    def encode(self, features: Tensor) -> list[Any]:
        """Return the context of each member from the features of all members, concatenated."""
        parts = zip(self.policies, self.split(features), strict=True)
        return [member.net.encode(part) for member, part in parts]


class Composition(Policy):
    """Base of composed policies: their members, their observations and their storage.

    Attributes:
        net: the members.
        weights: weights of the members.
    """

    net: MemberNets
    weights: list[float]

    def _compose(self, members: Sequence[Policy], weights: Sequence[float]) -> None:
        """Set the dimensions, weights and inference options; the first step of a constructor.

        Raises:
            ConfigError: the members or the weights do not fit together.
        """
        _check_members(members, weights)
        first = members[0]
        Policy.__init__(self, first.shape, first.normalizer)
        self.weights = list(weights)
        self.inference = first.inference
        self.config = {**first.config, "model": {"name": self.name, "weights": self.weights}}
        self.config.pop("trained", None)

    def encode_observation(
        self,
        obs: dict[str, Tensor],
        prefix: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> Tensor:
        features = []
        for i, member in enumerate(self.net.policies):
            own = None if prefix is None else self.net.to_own_units(i, prefix)
            features.append(member.encode_observation(obs, own, prefix_length))
        return torch.cat(features, dim=-1)

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        raise ConfigError(f"model={self.name} cannot be trained; train its members.")

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        raise ConfigError(f"model={self.name} cannot be trained; train its members.")

    @property
    def _data_config(self) -> dict[str, Any]:
        return {
            "shape": asdict(self.shape),
            "members": [
                {**m.config, "shape": asdict(m.shape), "normalizer": m.normalizer.to_json()}
                for m in self.net.policies
            ],
        }

    @classmethod
    def build(cls, config: dict[str, Any], normalizer: Normalizer) -> Policy:
        constructor: Any = cls  # Subclasses are built from members and weights.
        members = [
            build_policy(member, Normalizer.from_json(member["normalizer"]))
            for member in config["members"]
        ]
        return constructor(members, config["model"]["weights"])


def equal_weights(members: Sequence[Policy]) -> list[float]:
    """Return weights that sum to 1."""
    return [1 / max(len(members), 1)] * len(members)


def _check_members(members: Sequence[Policy], weights: Sequence[float]) -> None:
    if len(members) < 2:
        raise ConfigError(f"a composed policy needs at least two members, got {len(members)}.")
    if len(weights) != len(members) or not abs(sum(weights) - 1) < 1e-6:
        raise ConfigError(
            f"weights must be one number for each of the {len(members)} policies and sum to 1, got "
            f"{list(weights)}."
        )
    first = members[0]
    for member in members:
        if not member.supports_costs or isinstance(member, Composition):
            raise ConfigError(f"model={member.name} cannot be a member of a composed policy.")
        if member.name != first.name:
            raise ConfigError(
                "all members of a composed policy must have the same model, got "
                f"model={first.name} and model={member.name}."
            )
        objectives = first.config.get("objective"), member.config.get("objective")
        if objectives[0] != objectives[1]:
            raise ConfigError(
                "all members of a composed policy must have the same objective, got "
                f"{objectives[0]} and {objectives[1]}."
            )
        for name in SHARED_DIMENSIONS:
            values = getattr(first.shape, name), getattr(member.shape, name)
            if values[0] != values[1]:
                raise ConfigError(
                    f"all members of a composed policy must have the same {name}, got {values[0]} "
                    f"and {values[1]}."
                )


def _units(common: Normalizer, own: Normalizer, i: int) -> tuple[Tensor, Tensor]:
    """Return scale and offset (A,) that map actions in common units to those of member i.

    Raises:
        ConfigError: the units differ too much.
    """
    zero = torch.zeros_like(common.box("action")[0])
    offset = own.normalize("action", common.unnormalize("action", zero))
    scale = own.normalize("action", common.unnormalize("action", zero + 1)) - offset
    constant = scale == 0  # This dimension has a single value in the data of a member.
    scale, offset = torch.where(constant, 1.0, scale), torch.where(constant, 0.0, offset)
    ratio = float(torch.maximum(scale, 1 / scale).max())
    if not float(offset.abs().max()) <= LARGEST_OFFSET:
        raise ConfigError(
            f"policy {i + 1} of the composition was trained on actions around another mean: "
            f"{float(offset.abs().max()):.1f} units of spread away; at most {LARGEST_OFFSET:g} are "
            "allowed."
        )
    if not ratio <= LARGEST_UNIT_RATIO:
        raise ConfigError(
            f"policy {i + 1} of the composition was trained on actions whose spread differs by a "
            f"factor of {ratio:.1f}; at most {LARGEST_UNIT_RATIO:g} is allowed."
        )
    return scale, offset
