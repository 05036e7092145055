"""Networks with a vector output, which the option ``model.network`` selects by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.policies.chunk_transformer import ChunkTransformer
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.unet1d import ConditionalUnet1d
from ebt_policy.registry import Registry

# (shape, size, actions_per_token) -> a network with the interface of `ChunkTransformer`.
BuildNetwork = Callable[[PolicyShape, TransformerConfig, int], nn.Module]

CHUNK_NETWORKS: Registry[BuildNetwork] = Registry("model.network", "ebt_policy.chunk_networks")


@CHUNK_NETWORKS.register("transformer")
def build_transformer(
    shape: PolicyShape, size: TransformerConfig, actions_per_token: int
) -> ChunkTransformer:
    """Build a transformer over action chunks."""
    return ChunkTransformer(shape, size, actions_per_token, output="vector", level=True)


@CHUNK_NETWORKS.register("unet")
def build_unet(
    shape: PolicyShape, size: TransformerConfig, actions_per_token: int
) -> ConditionalUnet1d:
    """Build a U-Net with about as many parameters as the transformer of this size."""
    transformer = build_transformer(shape, size, actions_per_token)
    return ConditionalUnet1d.with_num_parameters(
        shape, sum(p.numel() for p in transformer.parameters())
    )
