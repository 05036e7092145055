"""Golden cases: tiny trainings of every model and objective, and their predictions.

Each case trains a tiny model on the data of `golden_data` with the code of the training command
(configuration, data, trainer, checkpoint). `golden_predictions` then predicts with its checkpoint.
`tests/golden` holds the records, the checkpoints and two interrupted runs; `golden_records` reads
and writes them, and `tests/test_golden.py` compares with them.

Update this file when an option is renamed, and `golden_predictions` when a method is renamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

UPDATES = 5


@dataclass(frozen=True)
class Case:
    """A training, and the inference options of its recorded predictions.

    Args:
        arguments: overrides of the training command.
        inference: setting -> inference options; each setting also keeps the options before it.
        extra: optional dependency that the case needs.
    """

    arguments: tuple[str, ...]
    inference: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: str | None = None


SHARED = (
    "size.width=8", "size.heads=2", "device=cpu", "train.minutes=null", f"train.steps={UPDATES}",
    "train.lr=0.003", "train.warmup_steps=2", "train.compile=false", "train.eval_every=0",
    "train.log_every=1",
)  # fmt: skip
ROBOT = (
    *SHARED, "size.layers=1", "train.batch_size=8", "task.horizon=8", "task.n_action_steps=4",
    "task.validation_episodes=1", "evaluation.episodes=0",
)  # fmt: skip
PUSH_T = ("task=push_t", "task.path=push_t", *ROBOT)
TEXT = (
    "task=text", "task.path=text.txt", *SHARED, "size.layers=2", "task.tokenizer=char",
    "task.context=8", "train.batch_size=4", "evaluation.final=false",
)  # fmt: skip
IMAGE = (
    "task=image", "task.path=images", *SHARED, "size.layers=1", "task.side=8", "train.batch_size=4",
    "evaluation.final=false",
)  # fmt: skip
VIDEO = (
    "task=video", "task.path=clips.mkv", *SHARED, "task.height=8", "task.width=8", "task.context=4",
    "train.batch_size=4", "evaluation.final=false",
)  # fmt: skip
AUTOENCODER = "features"  # folder of the autoencoder that encodes frames for the video models
FEATURES = (*VIDEO, "size.layers=2", f"task.features={AUTOENCODER}")
SEVERAL = {"one": {"num_candidates": 1}, "several": {"num_candidates": 5}}
# Inference options: GUESSES if candidates start from noise, STEPS if all start from one point.
GUESSES: dict[str, Any] = {
    "several": {"num_candidates": 4},
    "more": {"steps": 4, "reject_energy_increase": True},
}
STEPS: dict[str, Any] = {
    "more": {"steps": 4, "stop_grad_norm": 0.05, "reject_energy_increase": True}
}
GENERATING = ("task.max_noise_level=1000",)

CASES: dict[str, Case] = {
    "autoencoder/kl": Case(
        (*VIDEO, "model=autoencoder", "model.channels=[8,8]", "model.latent=2")
    ),
    "robot/ebt_flow": Case(
        (*PUSH_T, "model=ebt", "objective=flow"),
        SEVERAL
        | {
            "lands": {"num_candidates": 4, "steps": 4, "straightness_tol": 0.5},
            "drop": {
                "num_candidates": 4, "straightness_tol": None, "select": "energy_decrease",
                "scoring_level": 0.7,
            },
            "medoid": {"select": "medoid"},
            "density": {"select": "density", "warm_start_steps": 2, "warm_start_level": 0.3},
        },
    ),
    "robot/ebt_flow_untold": Case(
        (
            *PUSH_T, "model=ebt", "objective=flow", "objective.condition_on_noise_level=false",
            "objective.noise_samples_per_target=2",
        ),
        SEVERAL,
    ),
    "robot/ebt_equilibrium": Case(
        (*PUSH_T, "model=ebt", "objective=equilibrium"),
        SEVERAL | {"stops": {"steps": 4, "stop_grad_norm": 0.5}},
    ),
    "robot/ebt_s1": Case((*PUSH_T, "model=ebt", "objective=s1"), SEVERAL),
    "robot/ebt_s2": Case((*PUSH_T, "model=ebt", "objective=s2", "objective.replay=12"), SEVERAL),
    "robot/ebt_s2_momentum": Case(
        (*PUSH_T, "model=ebt", "objective=s2", "objective.replay=0", "objective.momentum=0.3"),
        SEVERAL,
    ),
    "robot/ebt_contrastive": Case((*PUSH_T, "model=ebt", "objective=contrastive"), SEVERAL),
    "robot/ebt_absolute": Case(
        (*PUSH_T, "model=ebt", "task.relative_to=null", "task.align=false", "task.mirror=false"),
        SEVERAL,
    ),
    "robot/ebt_told_prefix": Case((*PUSH_T, "model=ebt", "task.max_prefix_len=3"), SEVERAL),
    "robot/ebt_lift": Case(("task=lift", "task.path=lift", *ROBOT, "model=ebt"), SEVERAL),
    "robot/ebt_pixels": Case(
        (
            "task=push_t_image", "task.path=push_t", *ROBOT, "model=ebt", "vision.keypoints=2",
            "vision.stage=0", "vision.downsample=4",
        ),
        SEVERAL, extra="timm",
    ),
    "robot/bc": Case((*PUSH_T, "model=bc")),
    "robot/bc_told_prefix": Case((*PUSH_T, "model=bc", "task.max_prefix_len=3")),
    "robot/diffusion": Case(
        (*PUSH_T, "model=diffusion", "model.inference.steps=6"),
        SEVERAL
        | {
            "medoid": {"select": "medoid"},
            "line_integral": {"select": "line_integral"},
            "ddim": {"num_candidates": 1, "scheduler": "ddim", "steps": 3},
        },
    ),
    "robot/diffusion_epsilon": Case(
        (*PUSH_T, "model=diffusion", "model.prediction=epsilon", "model.inference.steps=6"), SEVERAL
    ),
    "robot/diffusion_unet": Case(
        (*PUSH_T, "model=diffusion", "model.network=unet", "model.inference.steps=6"), SEVERAL
    ),
    "robot/flow_matching": Case(
        (*PUSH_T, "model=flow_matching"),
        SEVERAL | {"line_integral": {"select": "line_integral", "steps": 2}},
    ),
    "robot/ibc": Case((*PUSH_T, "model=ibc", "model.negatives=8", "model.inference.samples=16")),
    "text/ebt_s1": Case((*TEXT, "model=ebt", "objective=s1"), STEPS),
    "text/ebt_s1_told": Case(
        (*TEXT, "model=ebt", "objective=s1", "objective.step_conditioned=true")
    ),
    "text/ebt_s2": Case((*TEXT, "model=ebt", "objective=s2"), GUESSES),
    "text/ebt_s2_replay": Case(
        (*TEXT, "model=ebt", "objective=s2", "objective.replay=6", "objective.noise=[0.2,0.002]")
    ),
    "text/ebt_corrupted": Case((*TEXT, "model=ebt", "objective=s1_corrupted"), GUESSES),
    "text/ebt_guess_layers": Case((*TEXT, "model=ebt", "model.candidate_layers=1")),
    "text/ebt_bpe": Case(
        (*TEXT, "model=ebt", "task.tokenizer=bpe", "task.vocab_size=270")
    ),
    "text/refiner_s1": Case((*TEXT, "model=refiner", "objective=s1")),
    "text/refiner_s2": Case((*TEXT, "model=refiner", "objective=s2")),
    "text/refiner_corrupted": Case((*TEXT, "model=refiner", "objective=s1_corrupted")),
    "text/transformer_pp": Case((*TEXT, "model=transformer_pp")),
    "text/masked_ebt_s1": Case((*TEXT, "model=masked_ebt", "objective=s1"), STEPS),
    "text/masked_ebt_s2": Case((*TEXT, "model=masked_ebt", "objective=s2"), GUESSES),
    "text/masked_ebt_corrupted": Case(
        (*TEXT, "model=masked_ebt", "objective=s1_corrupted"), GUESSES
    ),
    "text/masked_ebt_product": Case((*TEXT, "model=masked_ebt", "model.energy=product")),
    "text/bert": Case((*TEXT, "model=bert")),
    "image/ebt_s1": Case((*IMAGE, "model=ebt", "objective=s1"), STEPS),
    "image/ebt_s1_told": Case(
        (*IMAGE, "model=ebt", "objective=s1", "objective.step_conditioned=true")
    ),
    "image/ebt_s2": Case((*IMAGE, "model=ebt", "objective=s2", "objective.replay=6")),
    "image/ebt_corrupted": Case((*IMAGE, "model=ebt", "objective=s1_corrupted")),
    "image/ebt_equilibrium": Case(
        (*IMAGE, "model=ebt", "objective=equilibrium", *GENERATING, "task.classes=true"), GUESSES
    ),
    "image/ebt_grey": Case((*IMAGE, "model=ebt", "task.channels=1")),
    "image/refiner_s1": Case((*IMAGE, "model=refiner", "objective=s1")),
    "image/refiner_s2": Case((*IMAGE, "model=refiner", "objective=s2", "objective.replay=6")),
    "image/refiner_corrupted": Case((*IMAGE, "model=refiner", "objective=s1_corrupted")),
    "image/refiner_equilibrium": Case(
        (*IMAGE, "model=refiner", "objective=equilibrium", *GENERATING)
    ),
    "image/dit": Case(
        (*IMAGE, "model=dit", "model.inference.steps=5"),
        {
            "untold": {"start_at_noise_level": False},
            "ddpm": {"start_at_noise_level": True, "scheduler": "ddpm"},
        },
    ),
    "image/dit_classes": Case(
        (*IMAGE, "model=dit", "model.inference.steps=5", *GENERATING, "task.classes=true")
    ),
    "video/ebt_s1": Case((*FEATURES, "model=ebt", "objective=s1"), STEPS),
    "video/ebt_s2": Case((*FEATURES, "model=ebt", "objective=s2"), GUESSES),
    "video/refiner_s1": Case((*FEATURES, "model=refiner", "objective=s1")),
    "video/refiner_s2": Case((*FEATURES, "model=refiner", "objective=s2")),
    "video/transformer_pp": Case((*FEATURES, "model=transformer_pp")),
}  # fmt: skip

# Cases whose checkpoints are stored.
STORED = (
    "autoencoder/kl", "video/ebt_s1", "video/transformer_pp", "robot/ebt_flow",
    "robot/ebt_equilibrium", "robot/ebt_s1", "robot/ebt_s2", "robot/ebt_contrastive",
    "robot/ebt_told_prefix", "robot/ebt_lift", "robot/ebt_pixels", "robot/bc", "robot/diffusion",
    "robot/flow_matching", "robot/ibc", "text/ebt_s1", "text/refiner_s1", "text/transformer_pp",
    "text/masked_ebt_s1", "text/bert", "image/ebt_s1", "image/ebt_equilibrium", "image/dit",
)  # fmt: skip

# Runs that were interrupted halfway: name -> arguments. Their records cover the resumed run.
INTERRUPTED = {
    "interrupted/robot": (
        *PUSH_T, "model=ebt", "objective=s2", "objective.replay=12", f"train.steps={2 * UPDATES}",
        f"train.checkpoint_every={UPDATES}",
    ),
    "interrupted/text": (
        *TEXT, "model=ebt", "size.layers=1", f"train.steps={2 * UPDATES}",
        f"train.checkpoint_every={UPDATES}",
    ),
}  # fmt: skip

# Cases whose compiled predictions are compared with the eager ones.
COMPILED = ("robot/ebt_equilibrium", "robot/flow_matching", "robot/bc")


def kind_of(name: str) -> str:
    """Return the kind of model of a case or an interrupted run."""
    prefix, suffix = name.split("/")
    return suffix if prefix == "interrupted" else prefix


def run_of(name: str) -> str:
    """Return the run folder of a case or an interrupted run, relative to the data."""
    return f"runs/{name}"
