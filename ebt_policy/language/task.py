"""Training task of language models: load a text, train, validate and evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer

from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.language.data import Corpus, TokenWindows, iter_chunks, tokenized
from ebt_policy.language.datasets import load_corpus
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.metrics import held_out_surprisal, prediction_collapse_metrics
from ebt_policy.language.model import LANGUAGE_MODELS, TextModel, build_language_model
from ebt_policy.language.tokenizer import make_tokenizer
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.task import TrainingSetup, TrainingTask


@dataclass(frozen=True)
class TextTaskConfig:
    """The section ``task`` of a language model's configuration.

    Args:
        name: always ``text``.
        corpus, path: see `load_corpus`.
        tokenizer: see `make_tokenizer`.
        vocab_size: number of tokens with ``tokenizer=bpe``.
        context: S, the maximum number of context tokens.
    """

    name: str
    corpus: str | None
    path: str | list[str] | None
    tokenizer: str
    vocab_size: int
    context: int

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ConfigError(f"task.context must be at least 1, got {self.context}.")


@dataclass(frozen=True)
class TextEvaluation:
    """The section ``evaluation``.

    Args:
        windows: number of held-out windows for each validation during training; 0 disables it.
        final: whether to evaluate the trained model at the end, see `evaluate_language`.
    """

    windows: int
    final: bool


class TokenizedCorpus(NamedTuple):
    """A text and its tokens.

    Attributes:
        tokens: name of a split -> its tokens (N,).
    """

    corpus: Corpus
    tokenizer: Tokenizer
    tokens: dict[str, Any]


class TextTrainingTask(TrainingTask[TokenizedCorpus]):
    """Training of a language model on a text, validated and evaluated by its cross-entropy."""

    models = LANGUAGE_MODELS

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        super().__init__(config, train)
        self.task = options(TextTaskConfig, config["task"], "task")
        self.evaluation = options(TextEvaluation, config["evaluation"], "evaluation")

    def load_data(self) -> TokenizedCorpus:
        task = self.task
        corpus = load_corpus(task.corpus, task.path)
        if "train" not in corpus.splits:
            raise ConfigError(
                f"task.corpus={task.corpus} has no training split; train on another text."
            )
        text = corpus.splits["train"]
        tokenizer = make_tokenizer(task.tokenizer, iter_chunks(text), task.vocab_size)
        tokens = {split: tokenized(text, tokenizer) for split, text in corpus.splits.items()}
        return TokenizedCorpus(corpus, tokenizer, tokens)

    def describe(self, data: TokenizedCorpus) -> str:
        corpus = data.corpus
        return f"{corpus.name}: {len(corpus.splits['train']):,} characters, {corpus.origin}."

    def build(self, data: TokenizedCorpus, device: torch.device) -> TrainingSetup:
        torch.manual_seed(self.config["seed"])
        model = build_language_model(self.config, data.tokenizer)
        # The evaluation loads the text again by this name.
        task = self.config["task"]
        name = task["corpus"] or (None if self.task.path else data.corpus.name)
        model.config["task"] = {**task, "corpus": name}
        context = self.task.context
        windows = TokenWindows(data.tokens["train"], context, device=device)
        held_out = TokenWindows(data.tokens["validation"], context, stride=context, device=device)
        validates = self.train.eval_every > 0 and self.evaluation.windows > 0
        return TrainingSetup(
            model.to(device),
            windows,
            held_out,
            f"{len(data.tokens['train']):,} tokens, vocabulary of {model.vocabulary:,}",
            partial(self._validation_metrics, windows=held_out) if validates else None,
        )

    def _validation_metrics(self, model: TextModel, windows: TokenWindows) -> dict[str, float]:
        count = self.evaluation.windows
        metrics = {"held_out_loss": float(held_out_surprisal(model, windows, count).mean())}
        if isinstance(model, MaskedModel):  # Masked models tend to predict one word everywhere.
            metrics |= prediction_collapse_metrics(model, windows, count)
        return metrics

    def evaluate(
        self, data: TokenizedCorpus, run_dir: Path, device: torch.device, command: str
    ) -> None:
        from ebt_policy.language.evaluate import evaluate_language  # slow to import: matplotlib

        if self.evaluation.final:
            output = run_dir / "evaluation"
            evaluate_language([str(run_dir)], output=output, device=device, command=command)
