"""The network of a chunk policy: observations are context tokens, groups of actions candidates.

Shapes: B batch, U units (candidates a context), T horizon, A action dimension, To, Do.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ebt_policy.energy.two_stream import Context, TransformerConfig, TwoStreamTransformer
from ebt_policy.errors import ConfigError
from ebt_policy.policies.policy_shape import PolicyShape


class ChunkTransformer(nn.Module):
    """`TwoStreamTransformer` over action chunks, several actions to a token.

    Args:
        shape: dimensions of the task.
        size: the size dial.
        actions_per_token: consecutive actions in one token; a divisor of the horizon.
        output, level: as in `TwoStreamTransformer`.
    """

    def __init__(
        self,
        shape: PolicyShape,
        size: TransformerConfig,
        actions_per_token: int,
        *,
        output: Literal["energy", "vector"],
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
        """Encode observations (B, To, Do), once for each prediction."""
        return self.transformer.encode(obs)

    def forward(self, context: Context, chunks: Tensor, level: Tensor | None = None) -> Tensor:
        """Return energies (B, U) or vectors (B, U, T, A) of chunks at levels (B, U)."""
        tokens = chunks.unflatten(2, (-1, self.actions_per_token)).flatten(3)
        out = self.transformer(context, tokens, level)
        return out.view_as(chunks) if out.ndim == 4 else out
