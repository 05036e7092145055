"""Metrics of language models on held-out text: surprisal, and whether predictions collapse.

Shapes: B batch, S context, K masked tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from ebt_policy.language.data import TokenWindows, tokenized
from ebt_policy.language.datasets import load_corpus
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.model import TextModel

BATCH = 16
MAX_WINDOWS = 1024  # If a text has more windows, this many evenly spaced ones are used.


class EvalSet(NamedTuple):
    """Windows of a held-out text.

    Attributes:
        metadata: name and split of the text, number of windows, bytes per token.
    """

    windows: TokenWindows
    metadata: dict[str, Any]


def load_eval_set(
    model: TextModel, corpus: str | None, device: torch.device, split: str = "test"
) -> EvalSet:
    """Load windows of a held-out split of the model's own text, or of another text.

    Args:
        corpus: another text, by its name or the path of a file; None for the model's own text.
        split: ``test`` or ``validation``; the latter also if the text has no test split.

    Raises:
        TextError: the text is not available.
    """
    name, path = model.config["task"]["corpus"], model.config["task"]["path"]
    if corpus is not None:
        name, path = (None, corpus) if Path(corpus).exists() else (corpus, None)
    text = load_corpus(name, path)
    split = split if split in text.splits else "validation"
    tokens = tokenized(text.splits[split], model.tokenizer)
    windows = TokenWindows(tokens, model.context, stride=model.context, device=device)
    metadata = {
        "corpus": text.name,
        "part": split,
        "windows": min(len(windows), MAX_WINDOWS),
        "bytes_per_token": len(text.splits[split].encode()) / len(tokens),
    }
    return EvalSet(windows, metadata)


def window_batches(windows: TokenWindows, max_windows: int | None = None) -> list[torch.Tensor]:
    """Return window indices in batches: all, or ``max_windows`` evenly spaced ones if fewer."""
    count = len(windows)
    selected = torch.arange(count)
    if max_windows is not None and max_windows < count:
        selected = torch.linspace(0, count - 1, max_windows).long()
    return list(selected.split(BATCH))


def held_out_surprisal(
    model: TextModel, windows: TokenWindows, max_windows: int | None = None
) -> torch.Tensor:
    """Return -log p, in nats, of the predicted tokens of held-out windows.

    Returns:
        (windows, S), or (windows, K) for masked models.
    """
    generator = torch.Generator().manual_seed(0)
    surprisals = []
    for index in window_batches(windows, max_windows):
        tokens = windows.gather(index)["tokens"]
        surprisals.append(model.surprisal(tokens, generator).detach().cpu())
    return torch.cat(surprisals)


def prediction_collapse_metrics(
    model: MaskedModel, windows: TokenWindows, max_windows: int | None = None
) -> dict[str, float]:
    """Measure whether a model predicts the same token at most masked positions.

    Returns:
        ``accuracy`` of the most likely tokens; ``largest_share``, the share of masked positions at
        which the model predicts its most frequent prediction; ``true_largest_share``, the share of
        masked positions that have the most frequent true token.
    """
    generator = torch.Generator().manual_seed(0)
    predicted_batches, true_batches = [], []
    for index in window_batches(windows, max_windows):
        tokens = windows.gather(index)["tokens"]
        positions = model.mask_positions(tokens, generator)
        predicted_batches.append(
            model.predict_masked(tokens, positions, generator).argmax(-1).flatten()
        )
        true_batches.append(tokens.gather(1, positions).flatten())
    predicted, true = torch.cat(predicted_batches), torch.cat(true_batches)
    return {
        "accuracy": float((predicted == true).float().mean()),
        "largest_share": float(predicted.bincount().max() / len(predicted)),
        "true_largest_share": float(true.bincount().max() / len(true)),
    }
