"""Training a language model on a text, and its perplexity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.language.data import Corpus, TokenWindows, iter_chunks, tokenized
from ebt_policy.language.datasets import load_corpus
from ebt_policy.language.evaluate import evaluate_language
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.metrics import habits, held_out_surprisal
from ebt_policy.language.model import TextModel, build_language_model
from ebt_policy.language.tokenizer import make_tokenizer
from ebt_policy.training.task import TrainingSetup, TrainingTask
from ebt_policy.training.trainer import TrainConfig


@dataclass(frozen=True)
class TextTaskConfig:
    """The section ``task`` of a language model's configuration.

    Args:
        name: text.
        corpus, path: see `load_corpus`.
        tokenizer: see `make_tokenizer`.
        vocab_size: of ``tokenizer=bpe``.
        context: S, tokens that a prediction sees at most.
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
        windows: of held-out text while training; 0 for none.
        final: whether the trained model is evaluated on all held-out text.
    """

    windows: int
    final: bool


class TextTrainingTask(TrainingTask):
    """See `TrainingTask`."""

    def __init__(self, config: dict[str, Any], train: TrainConfig) -> None:
        super().__init__(config, train)
        self.task = options(TextTaskConfig, config["task"], "task")
        self.evaluation = options(TextEvaluation, config["evaluation"], "evaluation")
        self.corpus: Corpus | None = None
        self.tokenizer: Tokenizer | None = None
        self.held_out: TokenWindows | None = None

    @property
    def tries_out(self) -> bool:
        return super().tries_out and self.evaluation.windows > 0

    def fetch(self) -> str:
        task = self.task
        self.corpus = load_corpus(task.corpus, task.path)
        if "train" not in self.corpus.parts:
            raise ConfigError(
                f"task.corpus={task.corpus} is for evaluation; train on another text."
            )
        text = self.corpus.parts["train"]
        self.tokenizer = make_tokenizer(task.tokenizer, iter_chunks(text), task.vocab_size)
        self.tokens = {
            part: tokenized(text, self.tokenizer) for part, text in self.corpus.parts.items()
        }
        return f"{self.corpus.name}: {len(text):,} characters, {self.corpus.origin}."

    def build(self, device: torch.device) -> TrainingSetup:
        assert self.tokenizer is not None and self.corpus is not None
        torch.manual_seed(self.config["seed"])
        model = build_language_model(self.config, self.tokenizer)
        # Where the text is found again, and what it was called, is for the evaluation.
        model.config["task"] = {**self.config["task"], "corpus": self.config["task"]["corpus"] or
                                (None if self.task.path else self.corpus.name)}  # fmt: skip
        context = self.task.context
        windows = TokenWindows(self.tokens["train"], context, device=device)
        self.held_out = TokenWindows(
            self.tokens["validation"], context, stride=context, device=device
        )
        note = f"{len(self.tokens['train']):,} tokens of {model.vocabulary:,} kinds"
        return TrainingSetup(model.to(device), windows, self.held_out, note)

    def tryout(self, model: TextModel) -> dict[str, float]:
        assert self.held_out is not None
        found = held_out_surprisal(model, self.held_out, self.evaluation.windows)
        seen = {"held_out_loss": float(found.mean())}
        if isinstance(model, MaskedModel):  # such models are known to fill in one word everywhere
            seen |= habits(model, self.held_out, self.evaluation.windows)
        return seen

    def evaluate(self, run_dir: Path, device: torch.device, command: str) -> None:
        if self.evaluation.final:
            output = run_dir / "evaluation"
            evaluate_language([str(run_dir)], output=output, device=device, command=command)
