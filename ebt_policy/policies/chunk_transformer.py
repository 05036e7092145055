"""The transformer of chunk policies: observations are context tokens, and groups of actions are
candidate tokens.

Shapes: B batch, U units (candidates of a context), T horizon, A action dimension, To observations,
Do their dimension.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ebt_policy.energy.two_stream import Context, TransformerConfig, TwoStreamTransformer
from ebt_policy.errors import ConfigError
from ebt_policy.policies.policy_shape import PolicyShape


class ChunkTransformer(nn.Module):
    """`TwoStreamTransformer` over action chunks, with several actions in each token.

    Args:
        shape: dimensions of observations and chunks.
        size: width, heads and depth of the transformer.
        actions_per_token: number of consecutive actions in one token; must divide the horizon.
        output, level: as in `TwoStreamTransformer`.
    """

    def __init__(
        self,
        shape: PolicyShape,
        size: TransformerConfig,
        actions_per_token: int,
        *,
        output: Literal["energy", "mean", "vector"],
        level: bool,
    ) -> None:
        super().__init__()
        if actions_per_token < 1 or shape.horizon % actions_per_token:
            raise ConfigError(
                f"model.actions_per_token={actions_per_token} must divide the horizon "
                f"{shape.horizon}."
            )
        self.actions_per_token = actions_per_token
        self.transformer = TwoStreamTransformer(
            shape.obs_dim,
            shape.n_obs_steps,
            actions_per_token * shape.action_dim,
            shape.horizon // actions_per_token,
            size,
            output=output,
            level=level,
        )

    def encode(self, obs: Tensor) -> Context:
        """Encode observations (B, To, Do); needed only once for each prediction."""
        return self.transformer.encode(obs)

    def forward(self, context: Context, chunks: Tensor, level: Tensor | None = None) -> Tensor:
        """Return energies (B, U) or vectors (B, U, T, A) of candidates (B, U, T, A) at levels."""
        tokens = chunks.unflatten(2, (-1, self.actions_per_token)).flatten(3)
        out = self.transformer(context, tokens, level)
        return out.view_as(chunks) if out.ndim == 4 else out
