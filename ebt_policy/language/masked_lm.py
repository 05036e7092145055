"""Models that fill in what is masked in a text: what they share, and the energy model.

Shapes: B batch, S + 1 tokens, K masked ones, V vocabulary, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ebt_policy.config import options
from ebt_policy.energy import descend
from ebt_policy.energy.candidate_space import CandidateSpace, surprisal
from ebt_policy.energy.causal import BidirectionalTransformer
from ebt_policy.energy.gradients import BilinearEnergy, EnergyFn
from ebt_policy.energy.objectives import Objective
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.language.model import LANGUAGE_MODELS, ExpectedEmbedding, TextModel
from ebt_policy.models.energy_model import DescentInference, EnergyModel


class MaskedModel(TextModel):
    """Base: a part of the tokens is hidden from one stream, in which all see all.

    Args:
        tokenizer, context: as in `TextModel`.
        size: the size dial.
        masked: the part.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: int, size: TransformerConfig, *, masked: float
    ) -> None:
        super().__init__(tokenizer, context, size.width)
        if not 0 < masked < 1:
            raise ConfigError(f"model.masked must be between 0 and 1, got {masked}.")
        self.net = BidirectionalTransformer(size)
        self.masked = max(1, round(masked * (context + 1)))
        self.mask = nn.Parameter(0.02 * torch.randn(size.width))

    def places(self, tokens: Tensor, generator: Generators = None) -> Tensor:
        """Which tokens (B, S + 1) are masked: (B, K)."""
        drawn = draw_normal(self.mask.new_empty(tokens.shape), generator)
        return drawn.argsort(dim=1)[:, : self.masked]

    def read(self, tokens: Tensor, places: Tensor, guesses: Tensor) -> Tensor:
        """What the network makes of guesses (B, K, D) in the places (B, K) of tokens: (B, K, D)."""
        where = places.unsqueeze(-1).expand(-1, -1, self.mask.numel())
        known = self.embedding(tokens).scatter(1, where, (guesses + self.mask).expand_as(where))
        return self.net(known).gather(1, where)

    @abstractmethod
    def fill(self, tokens: Tensor, places: Tensor, generator: Generators = None) -> Tensor:
        """Logits (B, K, V) of what is masked."""

    def surprisal(self, tokens: Tensor, generator: Generators = None) -> Tensor:
        places = self.places(tokens, generator)
        return surprisal(self.fill(tokens, places, generator), tokens.gather(1, places))


@LANGUAGE_MODELS.register("masked_ebt")
class MaskedEnergyModel(EnergyModel, MaskedModel):
    """The distributions of all masked tokens descend one energy (Gladstone et al. 2025).

    They stand in the stream as tokens do, by their mean embeddings, and see each other. The energy
    is the sum of a scalar for each (``scalar``, as published), or of -<e, f(e)> as in
    `EnergyLanguageModel` (``product``), less their entropy.

    Args:
        tokenizer, context, size, masked: as in `MaskedModel`.
        energy: ``scalar`` or ``product``.
        inference: options of `DescentInference`.
        objective: how the landscape is learned; not told a level, and without replay.
    """

    name = "masked_ebt"

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: int,
        size: TransformerConfig,
        *,
        masked: float,
        energy: str,
        inference: dict[str, Any],
        objective: Objective,
    ) -> None:
        super().__init__(tokenizer, context, size, masked=masked)
        if energy not in ("scalar", "product"):
            raise ConfigError(f"model.energy must be scalar or product, got {energy}.")
        if objective.level_conditioned or objective.replay is not None:
            raise ConfigError("model=masked_ebt needs objective.told=false and objective.replay=0.")
        self.head = nn.Linear(size.width, 1) if energy == "scalar" else None
        self.objective = objective
        mirror = ExpectedEmbedding(self.embedding).mirror
        objective.space = CandidateSpace(surprisal, mirror, self.vocabulary)
        self.inference = options(DescentInference, inference, "model.inference")
        self.configure_inference()

    def target(self, batch: dict[str, Any]) -> Tensor:
        """All masked tokens of a row are one unit: (B, 1, K)."""
        return batch["tokens"].gather(1, batch["places"]).unsqueeze(1)

    def draws(self, batch: dict[str, Any]) -> dict[str, Any]:
        places = self.places(batch["tokens"])
        return {**super().draws({**batch, "places": places}), "places": places}

    def energy(self, tokens: Tensor, places: Tensor) -> EnergyFn:
        """Of mean embeddings (B, M, K, D), M candidates a row."""

        def read(e: Tensor, level: Tensor | None) -> Tensor:
            many = e.shape[1]
            rows, where = (x.repeat_interleave(many, dim=0) for x in (tokens, places))
            return self.read(rows, where, e.flatten(0, 1)).view_as(e)

        head = self.head
        if head is None:
            return BilinearEnergy(read)
        return lambda e, level: head(read(e, level)).flatten(2).sum(-1)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        draws = dict(batch["draws"])
        places = draws.pop("places")
        target = self.target({**batch, "places": places})
        return self.objective(self.energy(batch["tokens"], places), target, draws)

    def fill(self, tokens: Tensor, places: Tensor, generator: Generators = None) -> Tensor:
        how, rows = self.inference, len(tokens)
        empty = self.mask.new_empty(rows, how.candidates, self.masked)
        init = self.objective.space.empty(empty)
        if start := getattr(self.objective, "start", 1.0):
            init = start * draw_normal(init, generator)
        with torch.no_grad():
            found = descend(
                self.energy(tokens, places),
                init,
                generator=generator,
                **asdict(how),
                **self.objective.descent_options(how.steps),
            )
        return found.candidate.squeeze(1)
