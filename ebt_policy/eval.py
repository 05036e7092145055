"""Evaluate: ``python -m ebt_policy.eval checkpoint=A [checkpoint=B@steps=2 ...]``.

Compares what checkpoints predict and reports. What is measured depends on the domain of the first
checkpoint: see each domain's ``evaluate.py``. Every option is in ``configs/eval.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from ebt_policy.cli import command_line, pick_device, report_errors, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import checkpoint_domain, parse_checkpoint
from ebt_policy.evaluation.evaluator import EvalRun
from ebt_policy.io.output import output_folder
from ebt_policy.models.base import Domain

# Options that are for one domain alone.
OPTION_DOMAINS = {"suite": Domain.POLICY, "perturb": Domain.POLICY, "corpus": Domain.TEXT,
                  "images": Domain.IMAGE, "noise": Domain.IMAGE,
                  "video_dataset": Domain.VIDEO}  # fmt: skip


def _evaluate_policies(cfg: DictConfig, checkpoints: list[str], run: EvalRun) -> None:
    from ebt_policy.policies.eval_config import EvalConfig
    from ebt_policy.policies.evaluate import evaluate_policies
    from ebt_policy.policies.robustness import evaluate_robustness
    from ebt_policy.policies.suite import Suite, evaluate_suite

    episodes = {key: cfg[key] for key in ("episodes", "seed", "videos", "workers")}
    config = options(EvalConfig, episodes, "the evaluation")
    if cfg.get("suite"):
        section: Any = OmegaConf.to_container(cfg.suite, resolve=True)
        evaluate_suite(checkpoints, config, options(Suite, section, "suite"), **run._asdict())
    elif cfg.perturb:
        words = cfg.perturb if isinstance(cfg.perturb, str) else list(cfg.perturb)
        evaluate_robustness(checkpoints, config, words, **run._asdict())
    else:
        evaluate_policies(checkpoints, config, **run._asdict())


def _evaluate_language(cfg: DictConfig, checkpoints: list[str], run: EvalRun) -> None:
    from ebt_policy.language.evaluate import evaluate_language

    evaluate_language(checkpoints, corpus=cfg.corpus, **run._asdict())


def _evaluate_images(cfg: DictConfig, checkpoints: list[str], run: EvalRun) -> None:
    from ebt_policy.image.evaluate import DenoisingConfig, evaluate_images

    config = options(DenoisingConfig, {"images": cfg.images, "noise": cfg.noise}, "the evaluation")
    evaluate_images(checkpoints, config, **run._asdict())


def _evaluate_video(cfg: DictConfig, checkpoints: list[str], run: EvalRun) -> None:
    from ebt_policy.video.evaluate import evaluate_video

    dataset = None if cfg.video_dataset is None else str(cfg.video_dataset)
    evaluate_video(checkpoints, video_dataset=dataset, **run._asdict())


# Each imports its domain when it runs: some need libraries that robots do not have.
EVALUATORS: dict[Domain, Callable[[DictConfig, list[str], EvalRun], None]] = {
    Domain.POLICY: _evaluate_policies,
    Domain.TEXT: _evaluate_language,
    Domain.IMAGE: _evaluate_images,
    Domain.VIDEO: _evaluate_video,
}


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="eval")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        if "checkpoint" not in cfg or not cfg.checkpoint:
            raise ConfigError("missing required option checkpoint=RUN (may be repeated).")
        listed = [cfg.checkpoint] if isinstance(cfg.checkpoint, str) else list(cfg.checkpoint)
        checkpoints = [str(text) for text in listed]
        if cfg.get("suite") and cfg.perturb:
            raise ConfigError("suite= and perturb= do not go together; leave one out.")
        suite = cfg.suite.get("name") if cfg.get("suite") else None
        output = Path(str(cfg.output)) if cfg.output else _default_output(checkpoints, suite)
        run = EvalRun(output, pick_device(cfg.device), command_line("ebt_policy.eval"))
        with output_folder(output, "output"):
            domain = checkpoint_domain(checkpoints[0])
            for option, owner in OPTION_DOMAINS.items():
                if cfg.get(option) is not None and domain is not None and domain is not owner:
                    raise ConfigError(
                        f"{option}= is for {owner.noun}; {checkpoints[0]} holds {domain.noun}."
                    )
            EVALUATORS[domain or Domain.POLICY](cfg, checkpoints, run)


def _default_output(checkpoints: list[str], suite: str | None) -> Path:
    """Return ``results/`` and what is evaluated, on which suite, and how."""
    names = []
    for text in checkpoints:
        path, changes = parse_checkpoint(text)
        names.append(
            "-".join(
                [path.resolve().name, *(f"{k.removeprefix('num_')}{v}" for k, v in changes.items())]
            )
        )
    name = "-vs-".join(dict.fromkeys(names))
    return Path("results") / (f"{suite}-{name}" if suite else name)[:200]


def main() -> None:
    run_entry(_main, "checkpoint", "perturb")


if __name__ == "__main__":
    main()
