"""Text for training and evaluation: a corpus, its tokens on disk, and windows of tokens.

Shapes: N tokens of a corpus, B batch, S context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ebt_policy.errors import UserError
from ebt_policy.io.array_cache import cached_array

CHUNK = 1 << 20  # characters that are tokenized at once, at least


class TextError(UserError, ValueError):
    """Text that is missing or cannot be read."""


@dataclass(frozen=True)
class Corpus:
    """A text with its splits.

    Attributes:
        name: name in tables.
        splits: name of a split (``train``, ``validation``, ``test``) -> its text.
        origin: where the text comes from, for one line of output.
    """

    name: str
    splits: dict[str, str]
    origin: str


def iter_chunks(text: str) -> Iterator[str]:
    """Yield the chunks of a text, each of whole lines."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + CHUNK) + 1 or len(text)
        yield text[start:end]
        start = end


def tokenized(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Return the tokens (N,) of a text as a memory-mapped array of the cache.

    Raises:
        OSError: the cache cannot be written.
    """
    digest = hashlib.sha256(tokenizer.to_str().encode())
    digest.update(text.encode())
    return cached_array(f"tokens/{digest.hexdigest()[:32]}.npy", lambda: _tokenize(text, tokenizer))


def _tokenize(text: str, tokenizer: Tokenizer) -> np.ndarray:
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    encoded = tokenizer.encode_batch_fast(list(iter_chunks(text)), add_special_tokens=False)
    return np.concatenate(
        [np.zeros(0, dtype), *(np.array(encoding.ids, dtype) for encoding in encoded)]
    )


class TokenWindows:
    """Windows of S + 1 adjacent tokens of a text: the context, and the token after it.

    Args:
        tokens: tokens (N,) of a text, memory-mapped or not.
        context: S.
        stride: number of tokens between the starts of two windows.
        device: device of the batches.

    Raises:
        TextError: the text is shorter than a window.
    """

    def __init__(
        self, tokens: np.ndarray, context: int, *, stride: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        if len(tokens) <= context:
            raise TextError(
                f"a split of the text has {len(tokens)} tokens, and task.context={context} needs "
                f"at least {context + 1}; use a longer text or a shorter context."
            )
        self.tokens, self.context, self.stride, self.device = tokens, context, stride, device

    def __len__(self) -> int:
        return (len(self.tokens) - self.context - 1) // self.stride + 1

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """Return the windows of some indices: "tokens" (B, S + 1), int64."""
        starts = index.numpy() * self.stride
        rows = self.tokens[starts[:, None] + np.arange(self.context + 1)]
        tokens = torch.from_numpy(rows.astype(np.int64))
        return {"tokens": tokens.to(self.device, non_blocking=True)}
