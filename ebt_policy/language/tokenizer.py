"""Tokenizers of the library ``tokenizers``: characters, byte pairs, a file, or one of the hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ebt_policy.errors import ConfigError
from ebt_policy.io.paths import reason

UNKNOWN = "\ufffd"  # Stands for every character that the training text does not contain.
KINDS = "char, bpe, the path of a tokenizer.json, or a tokenizer of the Hugging Face hub"


def make_tokenizer(kind: str, text: Iterable[str], vocab_size: int) -> Tokenizer:
    """Make a tokenizer for a text.

    Args:
        kind: ``char`` (every character that occurs), ``bpe`` (byte-level BPE, trained on the text),
            the path of a tokenizer.json, or the name of a tokenizer of the Hugging Face hub, such
            as EleutherAI/gpt-neox-20b.
        text: chunks of the training text.
        vocab_size: number of tokens of ``bpe``, at least 257.

    Raises:
        ConfigError: ``vocab_size`` is too small, or the tokenizer cannot be loaded.
    """
    if kind == "char":
        return _characters(text)
    if kind == "bpe":
        return _byte_pairs(text, vocab_size)
    try:
        if kind.endswith(".json"):
            return Tokenizer.from_file(str(Path(kind)))
        return Tokenizer.from_pretrained(kind)
    except Exception as error:  # The library's errors have no common base class.
        raise ConfigError(
            f"task.tokenizer={kind} cannot be loaded ({reason(error)}); use {KINDS}."
        ) from error


def _characters(text: Iterable[str]) -> Tokenizer:
    characters = sorted(set().union(*(set(line) for line in text)))
    vocabulary = {
        token: i for i, token in enumerate([UNKNOWN, *(c for c in characters if c != UNKNOWN)])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    any_character: Any = Regex(r"[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(any_character, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _byte_pairs(text: Iterable[str], vocab_size: int) -> Tokenizer:
    if vocab_size < 257:
        raise ConfigError(
            f"task.vocab_size={vocab_size} must be at least 257: 256 bytes and the token <|end|>."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer
