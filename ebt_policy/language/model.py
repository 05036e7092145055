"""Base classes of language models, and the energy language model.

Shapes: B batch, S context, U units (one candidate for each position, or M adjacent ones),
V vocabulary, D width.
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
    """Build an untrained text model.

    Args:
        config: the sections ``task`` with its ``context``, ``size`` (see `TransformerConfig`),
            ``model`` with its ``name``, and ``objective`` for energy models.
        tokenizer: tokenizer of the training text.

    Raises:
        ConfigError: a name or an option is unknown.
    """
    return build_model(
        LANGUAGE_MODELS, config, tokenizer, config["task"]["context"], build_size(config)
    )


class TextModel(Model):
    """Base of all text models: a tokenizer, and an embedding that is also the output projection.

    Args:
        tokenizer: tokenizer of the training text.
        context: S, the maximum number of context tokens.
        width: D, the width of the embedding.
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
        """Return -log p of the predicted tokens, in nats.

        Args:
            tokens: (B, S + 1).

        Returns:
            (B, S) if the model predicts next tokens, (B, K) if it predicts K masked tokens.
        """

    def _write(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str())

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        with wrap_read_errors(folder / "tokenizer.json"):
            try:
                tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # The library's errors have no common base class.
                raise CheckpointError(f"{folder}/tokenizer.json is damaged ({error}).") from error
        return build_language_model(config, tokenizer)


class LanguageModel(TextModel):
    """Base of models that predict the next token.

    Args:
        tokenizer, context: as in `TextModel`.
        net: the network; its width is the width of the embedding.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, net: CausalTransformer) -> None:
        super().__init__(tokenizer, context, net.width)
        self.net = net

    def observe(self, tokens: Tensor, before: EncodedContext | None = None) -> EncodedContext:
        """Encode tokens (B, S) that follow the context ``before``, if there is one."""
        return self.net.observe(self.embedding(tokens), before)

    @abstractmethod
    def predict(self, context: EncodedContext, generator: Generators = None) -> Tensor:
        """Return logits (B, S, V) of the next token after each newly encoded token."""

    def surprisal(self, tokens: Tensor, generator: Generators = None) -> Tensor:
        """Return -log p (B, S), in nats, of all tokens (B, S + 1) except the first."""
        return cross_entropy(self.predict(self.observe(tokens[:, :-1]), generator), tokens[:, 1:])

    def generate(
        self, prompt: str, length: int, *, temperature: float = 1.0, top_k: int | None = None,
        generator: torch.Generator | None = None, cached: bool = True,
    ) -> Iterator[str]:  # fmt: skip
        """Yield the text that follows a prompt, token by token.

        Args:
            prompt: text to continue; at most its last S tokens are used.
            length: number of tokens to generate.
            temperature: divides the logits; 0 selects the most likely token.
            top_k: samples among the k most likely tokens; None among all tokens.
            generator: source of the noise of candidates and of the sampled tokens.
            cached: whether to cache keys and values; False recomputes them for every token.

        Raises:
            ConfigError: the prompt is empty.
        """
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        if not ids:
            raise ConfigError("prompt must not be empty; give it at least one character.")
        device = self.embedding.weight.device
        printed, start = len(self.tokenizer.decode(ids)), max(len(ids) - self.context, 0)
        context: EncodedContext | None = None
        for _ in range(length):
            if len(ids) - start > self.context:
                # Half of the context is dropped at once, so that few tokens need a new encoding.
                start, context = len(ids) - max(self.context // 2, 1), None
            with torch.no_grad():
                new = ids[start:] if context is None else ids[-1:]
                context = self.observe(torch.tensor([new], device=device), context)
                last = EncodedContext(context.keys_values, context.last[:, -1:])
                logits = self.predict(last, generator)[0, -1].float().cpu()
            context = context if cached else None
            ids.append(_sample_token(logits, temperature, top_k, generator))
            text = self.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # The bytes of a character are still incomplete.
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
    """Return -H (B, U), in nats, of the distributions of logits (B, U, *, V).

    The entropies of a unit are summed.
    """
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p).flatten(2).sum(-1)


class LogitCandidates:
    """Mixin of text models whose candidates are logits.

    The energy is a function of the mean embedding under a candidate's distribution.

    Attributes:
        embedding: embedding of the tokens.
    """

    embedding: nn.Embedding

    def candidate_space(self, vocabulary: int) -> CandidateSpace:
        """Return the candidate space of logits over a vocabulary of the given size.

        The potential of its mirror map, -H, makes the energy a free energy.
        """
        mirror = MirrorMap(self.embed, self.pullback, negative_entropy)
        return CandidateSpace(cross_entropy, mirror, vocabulary)

    def embed(self, logits: Tensor) -> Tensor:
        """Return the mean embedding (B, U, D) under the distributions of logits (B, U, V).

        The mean embedding under the uniform distribution is subtracted.
        """
        weight = self.embedding.weight
        if not any(logits.stride()[:-1]):  # One candidate, expanded to all units.
            mean = (logits[0, 0].softmax(-1) @ weight).expand(*logits.shape[:-1], -1)
        else:
            mean = logits.softmax(-1) @ weight
        return mean - weight.mean(dim=0)

    def pullback(self, gradient: Tensor) -> Tensor:
        """Return the gradient (B, U, V) with respect to the distribution.

        Args:
            gradient: (B, U, D), with respect to the mean embedding.
        """
        return F.linear(gradient, self.embedding.weight)


@LANGUAGE_MODELS.register("ebt")
class EnergyLanguageModel(LogitCandidates, LanguageModel, SequenceEnergyModel):
    """Energy language model: the distribution of the next token descends an energy.

    See Gladstone et al. 2025, sec. 4. A candidate is a distribution p over tokens with mean
    embedding e(p). Its energy is a free energy (Gibbs) with the network f and the entropy H:

        E(p) = -<e(p), f(e(p))> - H(p)

    If f did not depend on p, the minimum would be p = softmax(W f) with the embedding matrix W.
    Candidates are logits, and the gradient with respect to p moves them. This is mirror descent
    with exponentiated gradients.

    Args:
        tokenizer, context: as in `LanguageModel`.
        size: depth, width and heads of the network.
        candidate_layers: as in `CausalTransformer`.
        inference: options of `DescentInference`.
        objective: factory of the training objective.
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
