"""Errors of a descent: invalid options, incompatible parts and wrong tensor shapes."""

from __future__ import annotations

import pytest
import torch
from landscapes import descend, quadratic

from ebt_policy.energy import (
    ClippedGradient,
    Descent,
    FirstOf,
    FixedSteps,
    GradientNorm,
    LangevinNoise,
    LevelSchedule,
    MirrorMap,
    NesterovMomentum,
    PathProjection,
    RandomSteps,
    RejectIncreases,
    SharedFirstGradient,
    StraightPath,
    ZeroInitGradient,
)

LEVELS = LevelSchedule.uniform(2)
MIRROR = MirrorMap(torch.tanh, torch.tanh, quadratic())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedSteps(0, 0.1), "steps must be at least 1"),
        (lambda: RandomSteps((3, 2), 0.1), "range must not be empty"),
        (lambda: FixedSteps(2, 0.0), "step size must be positive"),
        (lambda: FixedSteps(2, float("nan")), "step size must be positive"),
        (lambda: RandomSteps((2, 2), 0.1, (0.0, 1.0)), "positive and ordered"),
        (lambda: RandomSteps((2, 2), 0.1, (2.0, 1.0)), "positive and ordered"),
        (lambda: LevelSchedule(torch.zeros(1), 0.1), "at least 2 levels, got 1"),
        (lambda: LevelSchedule.uniform(0), "steps must be at least 1"),
        (lambda: LangevinNoise(-0.1), "sigma must not be negative"),
        (lambda: NesterovMomentum(1.0), "momentum"),
        (lambda: NesterovMomentum(-0.1), "momentum"),
        (lambda: ClippedGradient(0.0), "max_norm must be positive"),
        (lambda: GradientNorm(-1.0), "must be positive, got -1"),
        (lambda: StraightPath(0.0), "must be positive, got 0"),
        (lambda: StraightPath(0.1, 0), "num_candidates must be at least 1"),
        (lambda: SharedFirstGradient(0), "num_candidates must be at least 1"),
        (lambda: FirstOf(()), "at least one rule"),
    ],
)
def test_invalid_options_of_parts_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"stop": StraightPath(0.1)}, "StraightPath needs a LevelSchedule"),
        ({"stop": FirstOf((GradientNorm(1.0), StraightPath(0.1)))}, "StraightPath needs"),
        ({"stop": RejectIncreases(), "schedule": LEVELS}, "cannot be used with LevelSchedule"),
        (
            {"stop": RejectIncreases(), "update": NesterovMomentum(0.5)},
            "used with NesterovMomentum",
        ),
        ({"stop": RejectIncreases(), "final_energy": False}, "needs final_energy=True"),
        ({"constraints": (PathProjection(torch.zeros(1, 1, 1), None),)}, "needs a LevelSchedule"),
        ({"gradient": SharedFirstGradient(2), "mirror": MIRROR}, "cannot be used with a mirror"),
        ({"gradient": SharedFirstGradient(2), "deadline_s": 1.0}, "cannot be used with deadline_s"),
        (
            {"gradient": ZeroInitGradient(), "noise": LangevinNoise(0.1)},
            "cannot be used with noise",
        ),
        ({"deadline_s": 0.0}, "deadline must be a positive"),
        ({"deadline_s": float("nan")}, "deadline must be a positive"),
    ],
)
def test_incompatible_parts_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Descent(**{"schedule": FixedSteps(2, 0.1), **parts})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": torch.ones(3)}, r"step size must be a number or have shape \(2,\) or"),
        ({"size": torch.ones(4, 2)}, r"got \(4, 2\)"),
        ({"noise": LangevinNoise(0.1, torch.zeros(2, 3, 4, 1))}, r"noise must be \(B, 2, U"),
        (
            {"noise": LangevinNoise(0.1), "generator": [torch.Generator()]},
            "1 generators for a batch of 2 rows",
        ),
        ({"init": torch.zeros(2, 4)}, r"init must have shape \(B, U, ...\)"),
        ({"energy": lambda x, level: x.sum((1, 2))}, r"energy must have shape \(2, 4\), one"),
        ({"gradient": SharedFirstGradient(3)}, "multiple of num_candidates=3"),
    ],
)
def test_tensors_of_wrong_shapes_are_refused(arguments, message):
    defaults = {"energy": quadratic(), "init": torch.ones(2, 4, 1), "count": 2, "size": 0.1}
    with pytest.raises(ValueError, match=message):
        descend(**{**defaults, **arguments})


def test_score_excludes_energy_based_stopping():
    rejecting = Descent(FixedSteps(2, 0.1), stop=RejectIncreases())
    with pytest.raises(ValueError, match="score cannot be used with stop="):
        rejecting(quadratic(), torch.ones(1, 1, 1), score=quadratic())
