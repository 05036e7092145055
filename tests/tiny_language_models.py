"""Tiny language models of every kind, with weights as large as after training, and their input.

Shapes: B batch, S context, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from ebt_policy.language.model import LanguageModel, build_language_model
from ebt_policy.language.tokenizer import make_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog. naïve 日本\n" * 60
B, S, V, STEPS = 2, 7, 11, 3
S1 = {"name": "s1", "steps": STEPS}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "transformer_pp": ({"name": "transformer_pp"}, None),
    "ebt": ({"name": "ebt"}, S1),
    "step-conditioned ebt": ({"name": "ebt"}, {**S1, "step_conditioned": True, "init_std": 0.0}),
    "ebt s2": ({"name": "ebt"}, {"name": "s2", "steps": [STEPS, STEPS], "replay": 0}),
    "shallow ebt": ({"name": "ebt", "candidate_layers": 1}, S1),
    "refiner": ({"name": "refiner"}, S1),
}


def build(kind: str, context: int = S, **inference: Any) -> LanguageModel:
    """Return a model of one of the `KINDS` with large random weights."""
    model, objective = KINDS[kind]
    if objective is not None:
        options = {"steps": STEPS, **inference}
        model = {"candidate_layers": None, **model, "inference": options}
    config = {
        "task": {"context": context},
        "size": {"width": 16, "heads": 2, "layers": 3},
        "model": model,
        "objective": objective,
    }
    torch.manual_seed(0)
    letters = "abcdefghij"  # plus the unknown token
    language_model = build_language_model(config, make_tokenizer("char", [letters], 0))
    with torch.no_grad():  # as large as after training, so that leaks are visible
        language_model.embedding.weight.normal_()
        for name, matrix in language_model.net.named_parameters():
            if matrix.ndim == 2:
                matrix.normal_(std=0.3)
            elif "step" not in name:
                matrix.uniform_(0.5, 1.5)
    return language_model.double()  # so that differences exceed rounding


def tokens(seed: int = 0, rows: int = B) -> torch.Tensor:
    return torch.randint(V, (rows, S), generator=torch.Generator().manual_seed(seed))


def generators(rows: int = B) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(rows)]
