"""Evaluate: ``python -m ebt_policy.eval checkpoint=A [checkpoint=B@steps=2 ...]``.

Plays seeded episodes, compares the policies on the same seeds, and leaves ``episodes.jsonl``,
``summary.json``, ``table.md``, MP4s and a self-contained ``report.html``. With ``perturb=`` see
``recovery.py``, with ``suite=`` see ``suite.py``, for language models ``language.py``, for those of
images ``restoring.py``, of video ``foreseeing.py``. Every option is in ``configs/eval.yaml``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from ebt_policy.cli import hydra_arguments, pick_device, report_errors
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.contestants import (
    checkpoint_domain,
    parse_checkpoint,
)
from ebt_policy.io.output import output_folder
from ebt_policy.models.base import Domain
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies
from ebt_policy.policies.robustness import evaluate_recovery
from ebt_policy.policies.suite import Suite, evaluate_suite


def _default_output(given: list[str], suite: Suite | None) -> Path:
    """``results/`` and what is evaluated, on which suite, and how."""
    words = []
    for text in given:
        path, changes = parse_checkpoint(text)
        words.append("-".join([path.resolve().name, *(f"{k}{v}" for k, v in changes.items())]))
    name = "-vs-".join(dict.fromkeys(words))
    return Path("results") / (f"{suite.name}-{name}" if suite else name)[:200]


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="eval")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        if "checkpoint" not in cfg or not cfg.checkpoint:
            raise ConfigError("missing required option checkpoint=RUN (may be repeated).")
        given = [cfg.checkpoint] if isinstance(cfg.checkpoint, str) else list(cfg.checkpoint)
        suite = None
        if cfg.get("suite"):
            section: Any = OmegaConf.to_container(cfg.suite, resolve=True)
            suite = options(Suite, section, "suite")
            if cfg.perturb:
                raise ConfigError("suite= and perturb= do not go together; leave one out.")
        protocol = {k: cfg[k] for k in ("episodes", "seed", "videos", "workers")}
        what: dict[str, Any] = {
            "output": Path(str(cfg.output)) if cfg.output else _default_output(given, suite),
            "device": pick_device(cfg.device),
            "command": " ".join(["python -m ebt_policy.eval", *_original]),
        }
        with output_folder(what["output"], "output"):
            _evaluate_kind(cfg, [str(text) for text in given], protocol, suite, what)


def _evaluate_kind(
    cfg: DictConfig, checkpoints: list[str], protocol: dict[str, Any], suite: Suite | None,
    what: dict[str, Any],
) -> None:  # fmt: skip
    domain = checkpoint_domain(checkpoints[0])
    for key, owner in ONLY_FOR.items():
        if cfg.get(key) is not None and domain is not None and domain is not owner:
            raise ConfigError(f"{key}= is for {owner.noun}; {checkpoints[0]} holds {domain.noun}.")
    if domain is Domain.IMAGE:
        from ebt_policy.image.evaluate import DenoisingConfig, evaluate_images

        chosen = {"images": cfg.images, "noise": cfg.noise}
        evaluate_images(checkpoints, options(DenoisingConfig, chosen, "the evaluation"), **what)
        return
    if domain is Domain.VIDEO:
        from ebt_policy.video.evaluate import evaluate_video

        other = None if cfg.footage is None else str(cfg.footage)
        evaluate_video(checkpoints, footage=other, **what)
        return
    if domain is Domain.TEXT:
        from ebt_policy.language.evaluate import (
            evaluate_language,  # asks for libraries robots do not
        )

        evaluate_language(checkpoints, corpus=cfg.corpus, **what)
        return
    checked = options(EvalConfig, protocol, "the evaluation")
    if suite:
        evaluate_suite(checkpoints, checked, suite, **what)
    elif cfg.perturb:
        words = cfg.perturb if isinstance(cfg.perturb, str) else list(cfg.perturb)
        evaluate_recovery(checkpoints, checked, words, **what)
    else:
        evaluate_policies(checkpoints, checked, **what)


ONLY_FOR = {"suite": Domain.POLICY, "perturb": Domain.POLICY, "corpus": Domain.TEXT,
            "images": Domain.IMAGE, "noise": Domain.IMAGE, "footage": Domain.VIDEO}  # fmt: skip
_original: list[str] = []


def main() -> None:
    _original[:] = sys.argv[1:]
    with report_errors():
        sys.argv[1:] = hydra_arguments(sys.argv[1:], "checkpoint", "perturb")
    _main()


if __name__ == "__main__":
    main()
