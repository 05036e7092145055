"""Transformer++: the Llama recipe, the language baseline of the EBT paper.

RMSNorm, rotary positions, SwiGLU, no biases (Touvron et al. 2023), here with the embedding as its
output map, as the energy model has it: it is the observed stream of that model and nothing else.
Shapes: B batch, S context, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ebt_policy.energy.noise import Generators
from ebt_policy.energy.objectives import surprisal
from ebt_policy.energy.sequences import CausalTransformer, Observed
from ebt_policy.energy.transformer import Size
from ebt_policy.models.text import LanguageModel


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
