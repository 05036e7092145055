"""Transformer++: the Llama recipe, the baseline of the EBT paper for text and video.

RMSNorm, rotary positions, SwiGLU, no biases (Touvron et al. 2023), here with the embedding as its
output map, as the energy model has it: it is the observed stream of that model and nothing else.
Shapes: B batch, S context, V vocabulary, F features of a frame.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ebt_policy.energy.noise import Generators
from ebt_policy.energy.sequences import CausalTransformer, Observed
from ebt_policy.energy.space import squared_error, surprisal
from ebt_policy.energy.transformer import Size
from ebt_policy.models.text import LanguageModel
from ebt_policy.models.video import Foreseen, VideoModel, mean_square


class TransformerPP(LanguageModel):
    """Logits of the next token from what the observed stream made of the last one."""

    name = "transformer_pp"

    def __init__(self, tokenizer: Tokenizer, context: int, size: Size) -> None:
        super().__init__(tokenizer, context, CausalTransformer(size, guesses=False))

    def draws(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch["tokens"]
        logits = self._logits(self.observe(tokens[:, :-1]))
        return surprisal(logits, tokens[:, 1:]).mean(), {}

    def predict(self, observed: Observed, generator: Generators = None) -> Tensor:
        with torch.no_grad():
            return self._logits(observed)

    def _logits(self, observed: Observed) -> Tensor:
        return F.linear(observed.last, self.embedding.weight)


class VideoTransformerPP(VideoModel):
    """The change to the next frame from what the observed stream made of the last one."""

    name = "transformer_pp"

    def __init__(self, features: int, context: int, size: Size) -> None:
        super().__init__(features, context, CausalTransformer(size, guesses=False))

    def draws(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        frames = batch["frames"]
        found = self.change_out(self.observe(frames[:, :-1]).last)
        return squared_error(found, self.changes(frames)).mean(), {}

    def predict(self, observed: Observed, generator: Generators = None) -> Foreseen:
        changes = self.change_out(observed.last)
        return Foreseen(changes, {"change": mean_square(changes)})
