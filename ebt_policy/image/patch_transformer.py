"""A transformer over the patches of an image, and the shape of its images.

Shapes: B batch, U units (candidates of an image), C channels, S side, P side of a patch, L patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ebt_policy.energy.two_stream import Context, TransformerConfig, TwoStreamTransformer
from ebt_policy.errors import ConfigError

LEVELS = 1000  # number of noise levels, as in DDPM: linear betas from 0.0001 to 0.02


@dataclass(frozen=True)
class ImageShape:
    """Size, channels, noise levels and classes of a model's images.

    Args:
        side: S, pixels.
        channels: C, 3 or 1.
        patch: P, pixels, a divisor of S.
        max_noise_level: highest noise level of training; 1000 to generate images.
        classes: number of classes that the network is conditioned on; 0 for none.
    """

    side: int
    channels: int
    patch: int
    max_noise_level: int
    classes: int

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ConfigError(f"task.side must be at least 1, got {self.side}.")
        if self.patch < 1 or self.side % self.patch:
            raise ConfigError(f"task.patch={self.patch} must divide task.side={self.side}.")
        if not 1 <= self.max_noise_level <= LEVELS:
            raise ConfigError(
                f"task.max_noise_level must be 1 to {LEVELS}, got {self.max_noise_level}."
            )


class PatchTransformer(nn.Module):
    """`TwoStreamTransformer` over the patches of an image, with its class as one context token.

    Args:
        shape: size, channels and classes of the images.
        size: depth, width and heads of the network.
        output, level: as in `TwoStreamTransformer`.
    """

    def __init__(
        self,
        shape: ImageShape,
        size: TransformerConfig,
        *,
        output: Literal["energy", "vector"],
        level: bool,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = TwoStreamTransformer(
            max(shape.classes, 1),
            1,
            shape.channels * shape.patch**2,
            (shape.side // shape.patch) ** 2,
            size,
            output=output,
            level=level,
        )

    def encode(self, labels: Tensor) -> Context:
        """Encode classes (B,); once per prediction is enough."""
        weight = self.transformer.context_in.weight
        token = weight.new_ones(len(labels), 1)
        if self.shape.classes:
            token = F.one_hot(labels, self.shape.classes).to(weight)
        return self.transformer.encode(token.unsqueeze(1))

    def forward(self, context: Context, images: Tensor, level: Tensor | None = None) -> Tensor:
        """Return energies (B, U), or vectors (B, U, C, S, S), for images at levels (B, U)."""
        out = self.transformer(context, self.patches(images), level)
        return out if out.ndim == 2 else self._images(out)

    def energy_map(self, context: Context, images: Tensor, level: Tensor | None = None) -> Tensor:
        """Return the contribution (B, U, S / P, S / P) of each patch to the energy of images."""
        tokens = self.patches(images)
        shares = (tokens * self.transformer.vector_field(context, tokens, level)).sum(-1)
        return shares.unflatten(-1, (self.shape.side // self.shape.patch, -1))

    def patches(self, images: Tensor) -> Tensor:
        """Split images (B, U, C, S, S) into tokens (B, U, L, C P P)."""
        patch, rows = self.shape.patch, self.shape.side // self.shape.patch
        split = images.unflatten(-1, (rows, patch)).unflatten(-3, (rows, patch))
        # (B, U, C, rows, P, columns, P) -> (B, U, rows * columns, C * P * P)
        return split.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)

    def _images(self, tokens: Tensor) -> Tensor:
        patch, rows = self.shape.patch, self.shape.side // self.shape.patch
        split = tokens.unflatten(2, (rows, rows)).unflatten(-1, (-1, patch, patch))
        return split.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4)
