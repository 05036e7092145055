"""Generate text: ``python -m ebt_policy.generate checkpoint=RUN prompt="Once"``.

Text is printed as it is generated. Options: checkpoint (a run or checkpoint folder; ``@steps=4``
changes an inference option), prompt, length (number of tokens), temperature (0 selects the most
likely token), top_k (0 samples among all tokens), seed, device.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ebt_policy.cli import Entry, pick_device, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.language.model import LanguageModel


@dataclass(frozen=True)
class GenerateOptions:
    """The options of ``configs/generate.yaml``, which describes them."""

    checkpoint: str | None
    prompt: str
    length: int
    temperature: float
    top_k: int
    seed: int
    device: str

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            raise ConfigError("missing required option checkpoint=RUN, a run of a language model.")
        for name, least in {"length": 1, "temperature": 0, "top_k": 0, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")


def _run(config: dict[str, Any], _overrides: Sequence[str]) -> None:
    settings = options(GenerateOptions, config, "the configuration")
    path, changes = parse_checkpoint(str(settings.checkpoint))
    model = LanguageModel.from_checkpoint(path, pick_device(settings.device))
    model.configure_inference(**changes)
    sys.stdout.write(settings.prompt)
    for text in model.generate(
        settings.prompt, settings.length, temperature=settings.temperature,
        top_k=settings.top_k or None, generator=torch.Generator().manual_seed(settings.seed),
    ):  # fmt: skip
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "ebt-generate",
            "generate",
            "Continue a text with a language model.",
            (
                'checkpoint=runs/text/ebt-2xs-seed0 "prompt=Once upon"',
                "checkpoint=runs/text/ebt-2xs-seed0@steps=4 length=500 temperature=0",
            ),
            _run,
        )
    )


if __name__ == "__main__":
    main()
