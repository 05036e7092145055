"""Masked language models: their base class, and the energy model.

Shapes: B batch, S + 1 tokens, K masked tokens, V vocabulary, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ebt_policy.config import options
from ebt_policy.energy import BilinearEnergy, EnergyFn
from ebt_policy.energy.candidate_space import cross_entropy
from ebt_policy.energy.causal import BidirectionalTransformer
from ebt_policy.energy.objectives import ObjectiveFactory
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.language.model import LANGUAGE_MODELS, LogitCandidates, TextModel
from ebt_policy.models.energy_model import DescentInference, EnergyModel


class MaskedModel(TextModel):
    """Base of masked models, which predict masked tokens with a bidirectional transformer.

    Args:
        tokenizer, context: as in `TextModel`.
        size: depth, width and heads of the network.
        mask_ratio: fraction of the tokens that is masked, between 0 and 1.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: int, size: TransformerConfig, *, mask_ratio: float
    ) -> None:
        super().__init__(tokenizer, context, size.width)
        if not 0 < mask_ratio < 1:
            raise ConfigError(f"model.mask_ratio must be between 0 and 1, got {mask_ratio}.")
        self.net = BidirectionalTransformer(size)
        self.num_masked = max(1, round(mask_ratio * (context + 1)))
        self.mask = nn.Parameter(0.02 * torch.randn(size.width))

    def mask_positions(self, tokens: Tensor, generator: Generators = None) -> Tensor:
        """Draw the masked positions (B, K) of tokens (B, S + 1)."""
        noise = draw_normal(self.mask.new_empty(tokens.shape), generator)
        return noise.argsort(dim=1)[:, : self.num_masked]

    def encode_masked(self, tokens: Tensor, positions: Tensor, candidates: Tensor) -> Tensor:
        """Return the network's output (B, K, D) at the masked positions.

        Args:
            tokens: (B, S + 1).
            positions: masked positions (B, K).
            candidates: embeddings, broadcast to (B, K, D). Each plus the mask's embedding replaces
                the embedding of a masked token.
        """
        index = positions.unsqueeze(-1).expand(-1, -1, self.mask.numel())
        masked = (candidates + self.mask).expand_as(index)
        return self.net(self.embedding(tokens).scatter(1, index, masked)).gather(1, index)

    @abstractmethod
    def predict_masked(
        self, tokens: Tensor, positions: Tensor, generator: Generators = None
    ) -> Tensor:
        """Return logits (B, K, V) of the masked tokens."""

    def surprisal(self, tokens: Tensor, generator: Generators = None) -> Tensor:
        positions = self.mask_positions(tokens, generator)
        logits = self.predict_masked(tokens, positions, generator)
        return cross_entropy(logits, tokens.gather(1, positions))


@LANGUAGE_MODELS.register("masked_ebt")
class MaskedEnergyModel(LogitCandidates, EnergyModel, MaskedModel):
    """Masked energy model: the distributions of all masked tokens descend one energy.

    See Gladstone et al. 2025. The mean embeddings of masked tokens enter the stream like
    embeddings of other tokens, so all attend to each other. The energy sums a term over the masked
    tokens and subtracts their entropy. The term is a scalar output of the network
    (``energy=scalar``, as published), or -<e, f(e)> as in `EnergyLanguageModel`
    (``energy=product``).

    Args:
        tokenizer, context, size, mask_ratio: as in `MaskedModel`.
        energy: ``scalar`` or ``product``.
        inference: options of `DescentInference`.
        objective: factory of the training objective, which must use neither levels nor replay.
    """

    name = "masked_ebt"

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: int,
        size: TransformerConfig,
        *,
        mask_ratio: float,
        energy: str,
        inference: dict[str, Any],
        objective: ObjectiveFactory,
    ) -> None:
        super().__init__(tokenizer, context, size, mask_ratio=mask_ratio)
        if energy not in ("scalar", "product"):
            raise ConfigError(f"model.energy must be scalar or product, got {energy}.")
        self.head = nn.Linear(size.width, 1) if energy == "scalar" else None
        self.objective = objective(self.candidate_space(self.vocabulary))
        if self.objective.level_conditioned or self.objective.replay is not None:
            raise ConfigError(
                "model=masked_ebt needs objective.step_conditioned=false and objective.replay=0."
            )
        self.inference = options(DescentInference, inference, "model.inference")
        self.configure_inference()

    def target(self, batch: dict[str, Any]) -> Tensor:
        """Return all masked tokens of a row as one unit: (B, 1, K)."""
        return batch["tokens"].gather(1, batch["positions"]).unsqueeze(1)

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        positions = self.mask_positions(batch["tokens"])
        return {**super().sample_noise({**batch, "positions": positions}), "positions": positions}

    def energy(self, tokens: Tensor, positions: Tensor) -> EnergyFn:
        """Return the energy as a function of mean embeddings (B, M, K, D), M candidates a row."""

        def field(e: Tensor, level: Tensor | None) -> Tensor:
            rows, index = (x.repeat_interleave(e.shape[1], dim=0) for x in (tokens, positions))
            return self.encode_masked(rows, index, e.flatten(0, 1)).view_as(e)

        head = self.head
        if head is None:
            return BilinearEnergy(field)
        return lambda e, level: head(field(e, level)).flatten(2).sum(-1)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        noise = dict(batch["noise"])
        positions = noise.pop("positions")
        target = self.target({**batch, "positions": positions})
        return self.objective(self.energy(batch["tokens"], positions), target, noise)

    def predict_masked(
        self, tokens: Tensor, positions: Tensor, generator: Generators = None
    ) -> Tensor:
        candidates = self.inference.num_candidates
        target = self.mask.new_empty(len(tokens), candidates, self.num_masked)
        init = self.objective.space.zeros_like_candidate(target)
        if init_std := self.objective.init_std:
            init = init_std * draw_normal(init, generator)
        result = self.descend_candidates(self.energy(tokens, positions), init, generator)
        return result.candidate.squeeze(1)
