"""Language models without an energy: the baselines of the energy models.

Shapes: B batch, S context, K masked tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ebt_policy.energy.candidate_space import cross_entropy
from ebt_policy.energy.causal import CausalTransformer, EncodedContext
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.model import LANGUAGE_MODELS, EnergyLanguageModel, LanguageModel
from ebt_policy.models.refiner import NoEnergyMixin


@LANGUAGE_MODELS.register("transformer_pp")
class TransformerPP(LanguageModel):
    """Transformer++: the Llama recipe, the baseline of the EBT paper.

    It has RMSNorm, rotary positions, SwiGLU and no biases (Touvron et al. 2023). The embedding is
    also the output projection, as in the energy model. So it is the observed stream of that model.
    """

    name = "transformer_pp"

    def __init__(self, tokenizer: Tokenizer, context: int, size: TransformerConfig) -> None:
        super().__init__(tokenizer, context, CausalTransformer(size, candidates=False))

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch["tokens"]
        logits = self._logits(self.observe(tokens[:, :-1]))
        return cross_entropy(logits, tokens[:, 1:]).mean(), {}

    def predict(self, context: EncodedContext, generator: Generators = None) -> Tensor:
        with torch.no_grad():
            return self._logits(context)

    def _logits(self, context: EncodedContext) -> Tensor:
        return F.linear(context.last, self.embedding.weight)


@LANGUAGE_MODELS.register("refiner")
class Refiner(NoEnergyMixin, EnergyLanguageModel):
    """A model without an energy: its network outputs the update of a candidate directly."""


@LANGUAGE_MODELS.register("bert")
class Bert(MaskedModel):
    """A masked model with BERT's objective (Devlin et al. 2019) and the blocks of Llama.

    All selected tokens are masked; none is kept or replaced with a random one.
    """

    name = "bert"

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"positions": self.mask_positions(batch["tokens"])}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, positions = batch["tokens"], batch["noise"]["positions"]
        logits = self._logits(tokens, positions)
        return cross_entropy(logits, tokens.gather(1, positions)).mean(), {}

    def predict_masked(
        self, tokens: Tensor, positions: Tensor, generator: Generators = None
    ) -> Tensor:
        with torch.no_grad():
            return self._logits(tokens, positions)

    def _logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        output = self.encode_masked(tokens, positions, torch.zeros_like(self.mask))
        return F.linear(output, self.embedding.weight)
