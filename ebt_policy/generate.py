"""Let a language model write: ``python -m ebt_policy.generate checkpoint=RUN prompt="Once"``.

Text appears as it is made. Settings: checkpoint (a run or checkpoint folder, ``@steps=4`` changes
how it predicts), prompt, length (tokens), temperature (0: the most likely), top_k (0: among all),
seed, device.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from ebt_policy.cli import pick_device, report_errors, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.language.model import LanguageModel


@dataclass(frozen=True)
class GenerateOptions:
    """See ``configs/generate.yaml``."""

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


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="generate")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        raw_options: Any = OmegaConf.to_container(cfg, resolve=True)
        config = options(GenerateOptions, raw_options, "the configuration")
        path, changes = parse_checkpoint(str(config.checkpoint))
        model = LanguageModel.from_checkpoint(path, pick_device(config.device))
        model.configure_inference(**changes)
        sys.stdout.write(config.prompt)
        for text in model.generate(
            config.prompt, config.length, temperature=config.temperature,
            top_k=config.top_k or None, generator=torch.Generator().manual_seed(config.seed),
        ):  # fmt: skip
            sys.stdout.write(text)
            sys.stdout.flush()
        sys.stdout.write("\n")


def main() -> None:
    run_entry(_main)


if __name__ == "__main__":
    main()
