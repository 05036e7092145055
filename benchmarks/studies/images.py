"""Studies of image models: docs/vision.md. All need $EBT_POLICY_DATA."""

from __future__ import annotations

from functools import partial

from benchmarks.evaluations import ImageEvaluation
from benchmarks.measurements.denoising import (
    DRAWN,
    add_bm3d_baseline,
    draw_energy_maps,
    draw_restored_images,
)
from benchmarks.measurements.generation import generation
from benchmarks.measurements.representation import EXCLUDED_CLASSES, representation
from benchmarks.study import Part, Run, Study
from benchmarks.tables import images as tables
from ebt_policy.image.model import LEVELS

NOISE = 100  # training noise level, as in the EBT paper; twice the level is tested, too
DENOISERS = {
    "ebt": ("model=ebt",),
    "ebt_s2": ("model=ebt", "objective=s2"),
    "ebt_all_levels": ("model=ebt", "objective=s1_corrupted", f"task.max_noise_level={2 * NOISE}"),
    "refiner": ("model=refiner",),
    "dit": ("model=dit",),
    "dit_wide": ("model=dit", f"task.max_noise_level={2 * NOISE}"),
}
PASSES = {
    "ebt": (1, 2, 3, 10),
    "ebt_s2": (1, 2, 3, 10),
    "ebt_all_levels": (1, 2, 3, 10),
    "refiner": (1, 2, 3, 10),
    "dit": (1, 2, 3, 10, 100, 300),
    "dit_wide": (1, 2, 3, 10, 100),
}
# The paper's DiT always starts at the highest training level, at any noise of the image.
AS_PUBLISHED = {"dit": ",start_at_noise_level=false"}


def denoising_study(images: str, kind: str, channels: int, test_set: str | None) -> Study:
    """Return the study of denoisers on a set of images.

    Args:
        images: name of the test images in the study's name.
        kind: ``colour`` or ``grey``; studies of one kind share their training runs.
        channels: channels of the images.
        test_set: name of the test set; None for the test images of the training set.
    """
    training = (
        "task=image", "task.images=bsds500", "train.minutes=null", f"task.channels={channels}",
        "size={size}", "train.steps={updates}",
    )  # fmt: skip
    part = Part(
        ImageEvaluation(test_set, NOISE),
        f"denoising_{images}_{{size}}",
        [f"{name}@steps={steps}{AS_PUBLISHED.get(name, '')}"
         for name, budgets in PASSES.items() for steps in budgets],
        groups={"drawn": list(DRAWN), "energy_maps": ["ebt-seed0"]},
        follow_ups=(
            partial(add_bm3d_baseline, images=test_set, noise=NOISE),
            partial(draw_restored_images, kind=kind, noise=NOISE),
            partial(draw_energy_maps, kind=kind, noise=NOISE),
        ),
        table=tables.denoising,
    )  # fmt: skip
    return Study(
        f"denoising {images.upper()} in {kind}, against DiT and BM3D (2 h on 1 core, size=2xs)",
        {"denoising": part},
        runs={name: Run((*training, *model)) for name, model in DENOISERS.items()},
        folder=f"runs/denoising/{kind}_{{size}}",
        options={"size": "2xs", "updates": 4000},
        packages=("bm3d",),
    )  # fmt: skip


EXCLUDED = f"task.exclude_classes=[{','.join(EXCLUDED_CLASSES)}]"
CIFAR = ("task=image", "task.images=cifar10", "train.minutes=null", "train.steps={updates}")
GENERATORS = {
    "ebt": ("model=ebt", "objective=equilibrium"),
    "refiner": ("model=refiner", "objective=equilibrium"),
    "dit": ("model=dit",),
}

STUDIES = {
    "denoising_cbsd68": denoising_study("cbsd68", "colour", 3, None),
    "denoising_bsd68": denoising_study("bsd68", "grey", 1, None),
    "denoising_set12": denoising_study("set12", "grey", 1, "set12"),
    "representation": Study(
        "linear probes and out-of-distribution detection with frozen denoisers",
        {"representation": Part(
            representation, "representation", ("ebt", "refiner", "dit@steps=10"),
            table=tables.representation,
        )},
        runs={
            name: Run((*CIFAR, EXCLUDED, "size=2xs", f"model={name}"))
            for name in ("ebt", "refiner", "dit")
        },
        folder="runs/representation",
        options={"updates": 3000},
    ),
    "generation": Study(
        "generation of CIFAR-10 images by class: Fréchet distance and accuracy",
        {"generation": Part(
            generation, "generation",
            [f"{name}@steps={passes}" for name in GENERATORS for passes in (5, 10, 25, 50)],
            table=tables.generation,
        )},
        runs={
            name: Run(
                (*CIFAR, "task.classes=true", f"task.max_noise_level={LEVELS}", "size=xs", *model)
            )
            for name, model in GENERATORS.items()
        },
        folder="runs/generation",
        # inception is the usual FID (needs torch-fidelity, which downloads its network). Distances
        # in the classifier's features do not compare with published ones.
        options={"updates": 3000, "images": 2000, "features": ("classifier", "inception")},
    ),
}  # fmt: skip
