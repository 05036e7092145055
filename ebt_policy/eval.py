"""Evaluate: ``python -m ebt_policy.eval checkpoint=A [checkpoint=B@steps=2 ...]``.

Compares the predictions of checkpoints and writes a report. The metrics depend on the domain of the
first checkpoint, see each domain's ``evaluate.py``. All options are in ``configs/eval.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ebt_policy.cli import Entry, command_line, pick_device, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import checkpoint_domain
from ebt_policy.evaluation.eval_run import EvalRun
from ebt_policy.evaluation.results_folder import results_folder
from ebt_policy.io.output import output_folder
from ebt_policy.models.base import Domain

# Options for a single domain.
OPTION_DOMAINS = {"suite": Domain.POLICY, "perturb": Domain.POLICY, "corpus": Domain.TEXT,
                  "images": Domain.IMAGE, "noise": Domain.IMAGE,
                  "video_dataset": Domain.VIDEO}  # fmt: skip


def _evaluate_policies(config: dict[str, Any], checkpoints: list[str], run: EvalRun) -> None:
    from ebt_policy.policies.eval_config import EvalConfig
    from ebt_policy.policies.evaluate import evaluate_policies
    from ebt_policy.policies.robustness import evaluate_robustness
    from ebt_policy.policies.suite import Suite, evaluate_suite

    names = ("episodes", "seed", "videos", "workers", "allow_pickle")
    section = {key: config[key] for key in names}
    episodes = options(EvalConfig, section, "the evaluation")
    if config.get("suite"):
        suite = options(Suite, config["suite"], "suite")
        evaluate_suite(checkpoints, episodes, suite, **run._asdict())
    elif config["perturb"]:
        evaluate_robustness(checkpoints, episodes, config["perturb"], **run._asdict())
    else:
        evaluate_policies(checkpoints, episodes, **run._asdict())


def _evaluate_language(config: dict[str, Any], checkpoints: list[str], run: EvalRun) -> None:
    from ebt_policy.language.evaluate import evaluate_language

    evaluate_language(checkpoints, corpus=config["corpus"], **run._asdict())


def _evaluate_images(config: dict[str, Any], checkpoints: list[str], run: EvalRun) -> None:
    from ebt_policy.image.evaluate import DenoisingConfig, evaluate_images

    section = {key: config[key] for key in ("images", "noise")}
    denoising = options(DenoisingConfig, section, "the evaluation")
    evaluate_images(checkpoints, denoising, **run._asdict())


def _evaluate_video(config: dict[str, Any], checkpoints: list[str], run: EvalRun) -> None:
    from ebt_policy.video.evaluate import evaluate_video

    evaluate_video(checkpoints, video_dataset=config["video_dataset"], **run._asdict())


# Each function imports its domain only when it runs, because some domains need libraries that are
# not installed on robots.
EVALUATORS: dict[Domain, Callable[[dict[str, Any], list[str], EvalRun], None]] = {
    Domain.POLICY: _evaluate_policies,
    Domain.TEXT: _evaluate_language,
    Domain.IMAGE: _evaluate_images,
    Domain.VIDEO: _evaluate_video,
}


def _run(config: dict[str, Any], _overrides: Sequence[str]) -> None:
    if not config["checkpoint"]:
        raise ConfigError("missing required option checkpoint=RUN (may be repeated).")
    value = config["checkpoint"]
    checkpoints = [str(text) for text in ([value] if isinstance(value, str) else value)]
    if config.get("suite") and config["perturb"]:
        raise ConfigError("suite= and perturb= exclude each other; leave one out.")
    suite = config["suite"].get("name") if config.get("suite") else None
    command = command_line("ebt_policy.eval")
    output = Path(config["output"] or results_folder(checkpoints, suite, command))
    run = EvalRun(output, pick_device(config["device"]), command)
    with output_folder(output, "output"):
        domain = checkpoint_domain(checkpoints[0])
        for option, owner in OPTION_DOMAINS.items():
            if config.get(option) is not None and domain is not None and domain is not owner:
                raise ConfigError(
                    f"{option}= is for {owner.noun}; {checkpoints[0]} holds {domain.noun}."
                )
        EVALUATORS[domain or Domain.POLICY](config, checkpoints, run)


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "ebt-eval",
            "eval",
            "Compare the predictions of checkpoints on the same seeds or data; write a report.",
            (
                "checkpoint=runs/push_t/ebt-xs-seed0",
                '"checkpoint=runs/push_t/ebt-xs-seed*" checkpoint=runs/push_t/diffusion-xs-seed0',
                "checkpoint=runs/push_t/ebt-xs-seed0@steps=4,num_candidates=16 episodes=100",
                "checkpoint=runs/push_t/ebt-xs-seed0 perturb=kick=50",
            ),
            _run,
            repeated=("checkpoint", "perturb"),
        )
    )


if __name__ == "__main__":
    main()
