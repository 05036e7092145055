"""Studies of video models: docs/vision.md. ``video_g1`` needs $EBT_POLICY_DATA."""

from __future__ import annotations

from benchmarks.evaluations import video_evaluation
from benchmarks.measurements.video_example import video_example
from benchmarks.study import Part, Run, Study
from benchmarks.tables import video as tables

SIZES = ("4xs", "2xs", "s")
MODELS = {
    "ebt": ("model=ebt",),
    "ebt_s2": ("model=ebt", "objective=s2"),
    "refiner": ("model=refiner",),
    "transformer_pp": ("model=transformer_pp",),
}
STEPS = {"ebt": (2, 1), "ebt_s2": (2, 1), "refiner": (2, 1)}  # inference steps by model


def autoencoder(*video: str) -> Run:
    """Return the run of an autoencoder, whose frozen features the models of a study predict."""
    return Run((*video, "model=autoencoder", "train.steps=1000", "train.minutes=null"))


def predictor(*overrides: str) -> Run:
    """Return a run of a model that predicts the features of the run ``autoencoder``."""
    common = (
        "task.features={folder}/autoencoder-seed0", "train.minutes=null", "train.steps={updates}",
    )  # fmt: skip
    return Run((*overrides, *common), after="autoencoder")


def video_study(videos: str, *task: str) -> Study:
    """Return the study of models of three sizes on a set of videos.

    Args:
        videos: name of the videos.
        task: further overrides of the task.
    """
    video = ("task=video", f"task.videos={videos}", *task)
    entries = [
        f"{model}-{size}" + (f"@steps={steps}" if steps else "")
        for size in SIZES
        for model in MODELS
        for steps in STEPS.get(model, (None,))
    ]
    return Study(
        f"prediction of the next frame of {videos} videos, by models of three sizes",
        {"video": Part(
            video_evaluation, f"video_{videos}", entries,
            # Only the largest models of one seed are drawn, so that the figures stay small.
            groups={"pictures": [f"{m}-{SIZES[-1]}-seed0" for m in ("ebt", "transformer_pp")]},
            table=tables.video,
        )},
        runs={
            "autoencoder": autoencoder(*video),
            # Compiling would take longer than training.
            **{
                f"{name}-{size}": predictor(*video, "train.compile=false", f"size={size}", *model)
                for size in SIZES
                for name, model in MODELS.items()
            },
        },
        folder=f"runs/video_study/{videos}",
        options={"updates": 1000},
    )  # fmt: skip


EXAMPLE = ("task=video", "task.videos=push_t_expert", "task.height=64")
STUDIES = {
    "video_g1": video_study("g1"),
    "video_push_t": video_study("push_t", "task.height=64"),  # Its frames are square.
    "video_example": Study(
        "docs/assets/video.png and video.webp: next frames of Push-T, free to publish",
        # One step is better than two: see docs/vision.md.
        {"video": Part(video_example, "", ("energy-seed0@steps=1", "transformer_pp-seed0"))},
        runs={
            "autoencoder": autoencoder(*EXAMPLE),
            "energy": predictor(*EXAMPLE, "size=s", "model=ebt"),
            "transformer_pp": predictor(*EXAMPLE, "size=s", "model=transformer_pp"),
        },
        folder="runs/video_film",
        options={"seeds": 1, "updates": 3000},
    ),
}
