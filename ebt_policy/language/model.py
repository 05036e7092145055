"""Language models: what they all do, and the energy language model.

Shapes: B batch, S context, U units (a guess for each place, or M of them adjacent), V vocabulary,
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
from ebt_policy.energy.candidate_space import CandidateSpace, surprisal
from ebt_policy.energy.causal import CausalTransformer, EncodedContext
from ebt_policy.energy.objectives import Objective
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.models.base import CheckpointError, Domain, Model, reading
from ebt_policy.models.building import build_model, build_size
from ebt_policy.models.energy_model import DescentInference
from ebt_policy.models.sequence_energy import SequenceEnergyModel
from ebt_policy.registry import Registry

LANGUAGE_MODELS: Registry[type[TextModel]] = Registry("model", "ebt_policy.language_models")


def build_language_model(config: dict[str, Any], tokenizer: Tokenizer) -> TextModel:
    """Build an untrained model of text.

    Args:
        config: sections ``task`` with its ``context``, ``size`` (see `TransformerConfig`),
            ``model`` with its ``name``, and ``objective`` for those that have guesses.
        tokenizer: of its text.

    Raises:
        ConfigError: for an unknown name or option.
    """
    return build_model(
        LANGUAGE_MODELS, config, tokenizer, config["task"]["context"], build_size(config)
    )


class TextModel(Model):
    """Base of all models of text: a tokenizer, and an embedding that is the output map, too.

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
        """-log p of the tokens (B, S + 1) that it predicts: (B, ...), nats."""

    def _write(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str())

    @classmethod
    def _rebuild(cls, config: dict[str, Any], folder: Path) -> Model:
        with reading(folder / "tokenizer.json"):
            try:
                tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # the library's own errors share no base
                raise CheckpointError(f"{folder}/tokenizer.json is damaged ({error}).") from error
        return build_language_model(config, tokenizer)


class LanguageModel(TextModel):
    """Base of models that predict what comes next: they share the observed stream.

    Args:
        tokenizer, context: as in `TextModel`.
        net: the network.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, net: CausalTransformer) -> None:
        super().__init__(tokenizer, context, net.width)
        self.net = net

    def observe(self, tokens: Tensor, before: EncodedContext | None = None) -> EncodedContext:
        """Tokens (B, S), after those observed before."""
        return self.net.observe(self.embedding(tokens), before)

    @abstractmethod
    def predict(self, observed: EncodedContext, generator: Generators = None) -> Tensor:
        """Logits (B, S, V) of what comes after each token that was new."""

    def surprisal(self, tokens: Tensor, generator: Generators = None) -> Tensor:
        """-log p of each token (B, S + 1) but the first, given those before it: (B, S), nats."""
        return surprisal(self.predict(self.observe(tokens[:, :-1]), generator), tokens[:, 1:])

    def generate(
        self, prompt: str, length: int, *, temperature: float = 1.0, top_k: int | None = None,
        generator: torch.Generator | None = None, cached: bool = True,
    ) -> Iterator[str]:  # fmt: skip
        """The text that follows a prompt, piece by piece as it is made.

        Args:
            prompt: some text; nothing but its last S tokens is seen.
            length: tokens to make.
            temperature: 0 takes the most likely token.
            top_k: draw among so many most likely tokens; None among all.
            cached: keep keys and values; without, all is computed anew for every token.

        Raises:
            ConfigError: an empty prompt.
        """
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        if not ids:
            raise ConfigError("the prompt must not be empty.")
        device = self.embedding.weight.device
        told, start = len(self.tokenizer.decode(ids)), max(len(ids) - self.context, 0)
        observed: EncodedContext | None = None
        for _ in range(length):
            if len(ids) - start > self.context:
                # Half of it is forgotten, so that not every token asks for all to be observed anew.
                start, observed = len(ids) - max(self.context // 2, 1), None
            with torch.no_grad():
                new = ids[start:] if observed is None else ids[-1:]
                observed = self.observe(torch.tensor([new], device=device), observed)
                last = EncodedContext(observed.keys_values, observed.last[:, -1:])
                logits = self.predict(last, generator)[0, -1].float().cpu()
            observed = observed if cached else None
            ids.append(_draw(logits, temperature, top_k, generator))
            text = self.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # of a character whose bytes are not all there yet
                yield text[told:]
                told = len(text)


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, len(logits))).values[-1], -1e30)
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))


def negative_entropy(logits: Tensor) -> Tensor:
    """-H of the distributions of logits (B, U, V): (B, U), nats; the sum of a unit's several."""
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p).flatten(2).sum(-1)


class ExpectedEmbedding:
    """Where the energy sees distributions over tokens: their mean embedding.

    Args:
        embedding: of the tokens.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        self.embedding = embedding

    @property
    def mirror(self) -> MirrorMap:
        """Of candidates that are logits; the potential makes their energy a free energy."""
        return MirrorMap(self.seen, self.moved, negative_entropy)

    def seen(self, logits: Tensor) -> Tensor:
        """The mean embedding (B, U, D) under the distributions of logits (B, U, V), measured from
        that of a guess that says nothing."""
        weight = self.embedding.weight
        if not any(logits.stride()[:-1]):  # all alike
            seen = (logits[0, 0].softmax(-1) @ weight).expand(*logits.shape[:-1], -1)
        else:
            seen = logits.softmax(-1) @ weight
        return seen - weight.mean(dim=0)

    def moved(self, slope: Tensor) -> Tensor:
        """The gradient in the distribution (B, U, V) from that in the mean embedding (B, U, D)."""
        return F.linear(slope, self.embedding.weight)


@LANGUAGE_MODELS.register("ebt")
class EnergyLanguageModel(LanguageModel, SequenceEnergyModel):
    """The next token's distribution descends an energy (Gladstone et al. 2025, section 4).

    A guess is a distribution p over tokens, with mean embedding e(p), and its energy a free energy,

        E(p) = -<e(p), f(e(p))> - H(p),   f the network, H the entropy (Gibbs).

    It is lowest at p = softmax(W f) where f is the same for all p. Candidates are logits, which
    the gradient in p moves: mirror descent, exponentiated gradients.

    Args:
        tokenizer, context: as in `LanguageModel`.
        size: the size dial.
        guess_layers: as in `CausalTransformer`.
        inference: options of `DescentInference`.
        objective: how the landscape is learned.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: int,
        size: TransformerConfig,
        *,
        guess_layers: int | None,
        inference: dict[str, Any],
        objective: Objective,
    ) -> None:
        told = objective.level_conditioned
        net = CausalTransformer(size, guess_layers=guess_layers, level=told)
        super().__init__(tokenizer, context, net)
        self.objective = objective
        mirror = ExpectedEmbedding(self.embedding).mirror
        objective.space = CandidateSpace(surprisal, mirror, self.vocabulary)
        self.inference = options(DescentInference, inference, "model.inference")
        self.configure_inference()

    def target(self, batch: dict[str, Any]) -> Tensor:
        return batch["tokens"][:, 1:]

    def like(self, observed: EncodedContext, units: int) -> Tensor:
        return observed.last.new_empty(len(observed.last), units)

    def predict(self, observed: EncodedContext, generator: Generators = None) -> Tensor:
        return self.think(observed, generator).candidate
