"""Let a language model write: ``python -m ebt_policy.generate checkpoint=RUN prompt="Once"``.

Text appears as it is made. Settings: checkpoint (a run or checkpoint folder, ``@steps=4`` changes
how it predicts), prompt, length (tokens), temperature (0: the most likely), top_k (0: among all),
seed, device.
"""

from __future__ import annotations

import sys

import hydra
import torch
from omegaconf import DictConfig

from ebt_policy.entry import hydra_arguments, pick_device, report_errors
from ebt_policy.evaluation.contestants import parse_checkpoint
from ebt_policy.models.text import LanguageModel
from ebt_policy.options import ConfigError


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="generate")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        if not cfg.get("checkpoint"):
            raise ConfigError("say what is to write: checkpoint=runs/text/...")
        if cfg.length < 1 or cfg.temperature < 0 or cfg.top_k < 0:
            raise ConfigError("length must be at least 1, temperature and top_k at least 0.")
        path, changes = parse_checkpoint(cfg.checkpoint)
        model = LanguageModel.from_checkpoint(path, pick_device(cfg.device))
        model.configure_inference(**changes)
        generator = torch.Generator().manual_seed(cfg.seed)
        sys.stdout.write(cfg.prompt)
        for piece in model.generate(
            cfg.prompt, cfg.length, temperature=cfg.temperature, top_k=cfg.top_k or None,
            generator=generator,
        ):  # fmt: skip
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


def main() -> None:
    with report_errors():
        sys.argv[1:] = hydra_arguments(sys.argv[1:])
    _main()


if __name__ == "__main__":
    main()
