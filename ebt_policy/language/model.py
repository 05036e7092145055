"""Language models: their bases, and the energy language model.

Shapes: B batch, S context, U units (a candidate for each place, or M adjacent), V vocabulary,
D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from ebt_policy.config import options
from ebt_policy.energy import MirrorMap
from ebt_policy.energy.candidate_space import CandidateSpace, cross_entropy
from ebt_policy.energy.causal import CausalTransformer, EncodedContext
from ebt_policy.energy.objectives import ObjectiveFactory
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.models.base import CheckpointError, Domain, Model, wrap_read_errors
from ebt_policy.models.energy_model import DescentInference
from ebt_policy.models.factory import build_model, build_size
from ebt_policy.models.sequence_energy import SequenceEnergyModel
from ebt_policy.registry import Registry

LANGUAGE_MODELS: Registry[type[TextModel]] = Registry("model", "ebt_policy.language_models")


def build_language_model(config: dict[str, Any], tokenizer: Tokenizer) -> TextModel:
    """Build an untrained model of text.

    Args:
        config: sections ``task`` with its ``context``, ``size`` (see `TransformerConfig`),
            ``model`` with its ``name``, and ``objective`` for energy models.
        tokenizer: of its text.

    Raises:
        ConfigError: for an unknown name or option.
    """
    return build_model(
        LANGUAGE_MODELS, config, tokenizer, config["task"]["context"], build_size(config)
    )


class TextModel(Model):
    """Base of all models of text: a tokenizer, and an embedding that is also the output map.

    Args:
        tokenizer: of its text.
        context: S, the longest sequence.
        width: D.
    """

    domain = Domain.TEXT
    files = ("tokenizer.json",)

    def __init__(self, tokenizer: Tokenizer, context: int, width: int) -> None:
        super().__init__()
        if context < 1:
            raise ConfigError(f"task.context must be at least 1, got {context}.")
        self.tokenizer, self.context = tokenizer, context
        self.vocabulary = tokenizer.get_vocab_size()
        self.embedding = nn.Embedding(self.vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    @property
    def keys(self) -> tuple[str, ...]:
        return ("tokens",)

    @abstractmethod
    def surprisal(self, tokens: Tensor, generator: Generators = None) -> Tensor:
        """Return -log p of the predicted ones of the tokens (B, S + 1): (B, ...), nats."""

    def _write(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str())

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        with wrap_read_errors(folder / "tokenizer.json"):
            try:
                tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # the library's own errors share no base
                raise CheckpointError(f"{folder}/tokenizer.json is damaged ({error}).") from error
        return build_language_model(config, tokenizer)


class LanguageModel(TextModel):
    """Base of models that predict the next token.

    Args:
        tokenizer, context: as in `TextModel`.
        net: the network.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, net: CausalTransformer) -> None:
        super().__init__(tokenizer, context, net.width)
        self.net = net

    def observe(self, tokens: Tensor, before: EncodedContext | None = None) -> EncodedContext:
        """Encode tokens (B, S), after those observed before."""
        return self.net.observe(self.embedding(tokens), before)

    @abstractmethod
    def predict(self, context: EncodedContext, generator: Generators = None) -> Tensor:
        """Return logits (B, S, V) of what comes after each token that was new."""

    def surprisal(self, tokens: Tensor, generator: Generators = None) -> Tensor:
        """Return -log p of tokens (B, S + 1) but the first, given those before: (B, S), nats."""
        return cross_entropy(self.predict(self.observe(tokens[:, :-1]), generator), tokens[:, 1:])

    def generate(
        self, prompt: str, length: int, *, temperature: float = 1.0, top_k: int | None = None,
        generator: torch.Generator | None = None, cached: bool = True,
    ) -> Iterator[str]:  # fmt: skip
        """Yield the text that follows a prompt, token by token.

        Args:
            prompt: conditions on at most its last S tokens.
            length: tokens to generate.
            temperature: 0 takes the most likely token.
            top_k: sample among the k most likely tokens; None among all.
            cached: keep keys and values; otherwise they are recomputed for every token.

        Raises:
            ConfigError: an empty prompt.
        """
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        if not ids:
            raise ConfigError("the prompt must not be empty.")
        device = self.embedding.weight.device
        printed, start = len(self.tokenizer.decode(ids)), max(len(ids) - self.context, 0)
        context: EncodedContext | None = None
        for _ in range(length):
            if len(ids) - start > self.context:
                # Half of it is dropped, so that not every token needs a new encoding of all.
                start, context = len(ids) - max(self.context // 2, 1), None
            with torch.no_grad():
                new = ids[start:] if context is None else ids[-1:]
                context = self.observe(torch.tensor([new], device=device), context)
                last = EncodedContext(context.keys_values, context.last[:, -1:])
                logits = self.predict(last, generator)[0, -1].float().cpu()
            context = context if cached else None
            ids.append(_sample_token(logits, temperature, top_k, generator))
            text = self.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # a character whose bytes are incomplete
                yield text[printed:]
                printed = len(text)


def _sample_token(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, len(logits))).values[-1], -1e30)
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))


def negative_entropy(logits: Tensor) -> Tensor:
    """Return -H of the distributions of logits (B, U, *, V), summed over a unit: (B, U), nats."""
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p).flatten(2).sum(-1)


class LogitCandidates:
    """A part of models of text whose candidates are logits.

    The energy sees the distribution of a candidate through its mean embedding.

    Attributes:
        embedding: of the tokens.
    """

    embedding: nn.Embedding

    def candidate_space(self, vocabulary: int) -> CandidateSpace:
        """Return the space of logits; the mirror's potential makes their energy a free energy."""
        mirror = MirrorMap(self.embed, self.pullback, negative_entropy)
        return CandidateSpace(cross_entropy, mirror, vocabulary)

    def embed(self, logits: Tensor) -> Tensor:
        """Return the mean embedding (B, U, D) under the distributions of logits (B, U, V).

        It is measured from the mean embedding under the uniform distribution.
        """
        weight = self.embedding.weight
        if not any(logits.stride()[:-1]):  # all are equal
            mean = (logits[0, 0].softmax(-1) @ weight).expand(*logits.shape[:-1], -1)
        else:
            mean = logits.softmax(-1) @ weight
        return mean - weight.mean(dim=0)

    def pullback(self, gradient: Tensor) -> Tensor:
        """Return the gradient in the distribution (B, U, V) from the mean embedding's (B, U, D)."""
        return F.linear(gradient, self.embedding.weight)


@LANGUAGE_MODELS.register("ebt")
class EnergyLanguageModel(LogitCandidates, LanguageModel, SequenceEnergyModel):
    """A model whose next token's distribution descends an energy (Gladstone et al. 2025, sec. 4).

    A candidate is a distribution p over tokens, with mean embedding e(p). Its energy is a free
    energy,

        E(p) = -<e(p), f(e(p))> - H(p),   f the network, H the entropy (Gibbs).

    It is lowest at p = softmax(W f) where f is the same for all p. Candidates are logits, which
    the gradient in p moves: mirror descent, exponentiated gradients.

    Args:
        tokenizer, context: as in `LanguageModel`.
        size: the size dial.
        candidate_layers: as in `CausalTransformer`.
        inference: options of `DescentInference`.
        objective: makes the training objective.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: int,
        size: TransformerConfig,
        *,
        candidate_layers: int | None,
        inference: dict[str, Any],
        objective: ObjectiveFactory,
    ) -> None:
        bound = objective(self.candidate_space(tokenizer.get_vocab_size()))
        net = CausalTransformer(
            size, candidate_layers=candidate_layers, level=bound.level_conditioned
        )
        super().__init__(tokenizer, context, net)
        self.objective = bound
        self.inference = options(DescentInference, inference, "model.inference")
        self.configure_inference()

    def target(self, batch: dict[str, Any]) -> Tensor:
        return batch["tokens"][:, 1:]

    def empty_target(self, context: EncodedContext, units: int) -> Tensor:
        return context.last.new_empty(len(context.last), units)

    def predict(self, context: EncodedContext, generator: Generators = None) -> Tensor:
        return self.descend(context, generator).candidate
