"""What models of text make of text that they did not learn from.

Shapes: B batch, S context, K masked tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ebt_policy.language.data import TokenWindows, tokenized
from ebt_policy.language.datasets import load_corpus
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.model import TextModel

BATCH = 16
MOST = 1024  # windows, evenly spread, of a text that has more


def held_out(
    model: TextModel, corpus: str | None, device: torch.device, part: str = "test"
) -> tuple[TokenWindows, dict[str, Any]]:
    """Windows of the text that a model did not learn from, or of another, and what it is.

    Of its part ``test`` or ``validation``; a text without a test part has the latter for both.

    Raises:
        TextError: it cannot be had.
    """
    given = model.config["task"]["corpus"], model.config["task"]["path"]
    if corpus is not None:
        given = (None, corpus) if Path(corpus).exists() else (corpus, None)
    text = load_corpus(*given)
    part = part if part in text.parts else "validation"
    tokens = tokenized(text.parts[part], model.tokenizer)
    windows = TokenWindows(tokens, model.context, stride=model.context, device=device)
    return windows, {
        "corpus": text.name,
        "part": part,
        "windows": min(len(windows), MOST),
        "bytes_per_token": len(text.parts[part].encode()) / len(tokens),
    }


def batches(windows: TokenWindows, most: int | None = None) -> list[torch.Tensor]:
    """Indices of windows in batches: all of them, or some, evenly spread."""
    count = len(windows)
    chosen = torch.arange(count)
    if most is not None and most < count:
        chosen = torch.linspace(0, count - 1, most).long()
    return list(chosen.split(BATCH))


def held_out_surprisal(
    model: TextModel, windows: TokenWindows, most: int | None = None
) -> torch.Tensor:
    """-log p of every token of held-out windows, nats: (windows, S)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in batches(windows, most):
        tokens = windows.gather(index)["tokens"]
        found.append(model.surprisal(tokens, generator).detach().cpu())
    return torch.cat(found)


def habits(model: MaskedModel, windows: TokenWindows, most: int | None = None) -> dict[str, float]:
    """What a model fills in on held-out windows, by its most likely tokens.

    Returns ``accuracy``, ``largest_share``, the part of the masked places taken by the token that
    it fills in most often, and ``true_largest_share``, by the most frequent one in truth.
    """
    generator = torch.Generator().manual_seed(0)
    filled, truth = [], []
    for index in batches(windows, most):
        tokens = windows.gather(index)["tokens"]
        places = model.mask_positions(tokens, generator)
        filled.append(model.predict_masked(tokens, places, generator).argmax(-1).flatten())
        truth.append(tokens.gather(1, places).flatten())
    guessed, true = torch.cat(filled), torch.cat(truth)
    return {
        "accuracy": float((guessed == true).float().mean()),
        "largest_share": float(guessed.bincount().max() / len(guessed)),
        "true_largest_share": float(true.bincount().max() / len(true)),
    }
