"""The baseline of masked text: BERT's objective (Devlin et al. 2019), every mask a mask.

Shapes: B batch, K masked tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ebt_policy.energy.noise import Generators
from ebt_policy.energy.space import surprisal
from ebt_policy.models.masked import MaskedModel


class Bert(MaskedModel):
    """Logits of what is masked from what stands around it; Llama's blocks, as its peers have."""

    name = "bert"

    def draws(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"places": self.places(batch["tokens"])}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, places = batch["tokens"], batch["draws"]["places"]
        return surprisal(self._logits(tokens, places), tokens.gather(1, places)).mean(), {}

    def fill(self, tokens: Tensor, places: Tensor, generator: Generators = None) -> Tensor:
        with torch.no_grad():
            return self._logits(tokens, places)

    def _logits(self, tokens: Tensor, places: Tensor) -> Tensor:
        seen = self.read(tokens, places, torch.zeros_like(self.mask))
        return F.linear(seen, self.embedding.weight)
