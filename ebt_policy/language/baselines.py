"""Language models without an energy, beside which those with one are judged.

Shapes: B batch, S context, K masked tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ebt_policy.energy.candidate_space import surprisal
from ebt_policy.energy.causal import CausalTransformer, EncodedContext
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.model import LANGUAGE_MODELS, EnergyLanguageModel, LanguageModel
from ebt_policy.models.no_energy import NoEnergyMixin


@LANGUAGE_MODELS.register("transformer_pp")
class TransformerPP(LanguageModel):
    """Transformer++: the Llama recipe, the baseline of the EBT paper.

    RMSNorm, rotary positions, SwiGLU, no biases (Touvron et al. 2023), here with the embedding as
    its output map, as the energy model has it: it is the observed stream of that model and nothing
    else.
    """

    name = "transformer_pp"

    def __init__(self, tokenizer: Tokenizer, context: int, size: TransformerConfig) -> None:
        super().__init__(tokenizer, context, CausalTransformer(size, guesses=False))

    def draws(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch["tokens"]
        logits = self._logits(self.observe(tokens[:, :-1]))
        return surprisal(logits, tokens[:, 1:]).mean(), {}

    def predict(self, observed: EncodedContext, generator: Generators = None) -> Tensor:
        with torch.no_grad():
            return self._logits(observed)

    def _logits(self, observed: EncodedContext) -> Tensor:
        return F.linear(observed.last, self.embedding.weight)


@LANGUAGE_MODELS.register("refiner")
class Refiner(NoEnergyMixin, EnergyLanguageModel):
    """The network's vector moves the guess as a gradient in the mean embedding would."""


@LANGUAGE_MODELS.register("bert")
class Bert(MaskedModel):
    """BERT's objective (Devlin et al. 2019), every mask a mask.

    Logits of what is masked from what stands around it; Llama's blocks, as its peers have.
    """

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
