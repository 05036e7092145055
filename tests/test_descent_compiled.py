"""A compiled descent is one graph and equals the eager descent, also with constraints.

Shapes: B batch, U units, T horizon, A action dimension.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from landscapes import level_quadratic, quadratic

from ebt_policy.energy import (
    ClippedGradient,
    Descent,
    FixedSteps,
    FrozenEntries,
    LangevinNoise,
    LevelSchedule,
    NesterovMomentum,
    PathProjection,
    Projection,
    RejectIncreases,
    SharedFirstGradient,
    StopReason,
    select,
)

B, M, T, A = 2, 4, 5, 2
FROZEN = (torch.arange(T) < 2).view(1, 1, T, 1)
PREFIX = torch.full((B, 1, T, A), 0.25)
NOISE = torch.randn(B, M, T, A, generator=torch.Generator().manual_seed(0))


def project_chunk(x: torch.Tensor) -> torch.Tensor:
    """Return chunks within limits that begin with the prefix."""
    return torch.where(FROZEN, PREFIX, x.clamp(-0.5, 0.5))


def level_energy(x: torch.Tensor, level: torch.Tensor | None) -> torch.Tensor:
    return level_quadratic(x.flatten(2), level)


LIMITS = Projection(lambda x: x.clamp(-0.5, 0.5))
KINDS: dict[str, tuple[Any, Descent]] = {
    "levels": (
        level_energy,
        Descent(
            LevelSchedule.uniform(3),
            SharedFirstGradient(M),
            constraints=(
                PathProjection(NOISE, project_chunk, lambda x: project_chunk(x.clamp(-0.4, 0.4))),
            ),
        ),
    ),
    "no levels": (
        quadratic(1.0, 2.0),
        Descent(FixedSteps(3, 0.3), constraints=(LIMITS, FrozenEntries(FROZEN))),
    ),
    "momentum and noise": (
        quadratic(1.0, 2.0),
        Descent(
            FixedSteps(3, 0.3),
            update=NesterovMomentum(0.5),
            noise=LangevinNoise(0.1, torch.randn(B, 3, M, T, A)),
            constraints=(LIMITS, FrozenEntries(FROZEN)),
        ),
    ),
    "clipped": (quadratic(1.0, 2.0), Descent(FixedSteps(3, 0.3), update=ClippedGradient(1.0))),
    "rejecting increases": (
        quadratic(30.0, 2.0),
        Descent(FixedSteps(3, 0.1), stop=RejectIncreases(), constraints=(FrozenEntries(FROZEN),)),
    ),
}


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_descent_with_prefix_and_limits_equals_eager(kind):
    torch._dynamo.reset()
    energy, descent = KINDS[kind]
    init = torch.where(FROZEN, PREFIX, NOISE) if kind != "levels" else NOISE

    def run(x: torch.Tensor) -> Any:
        with torch.no_grad():
            return select(descent(energy, x), M)

    # With fullgraph=True a graph break is an error.
    eager, compiled = run(init), torch.compile(run, fullgraph=True)(init)
    for name in ("candidate", "energies", "grad_norms", "energy_decrease"):
        torch.testing.assert_close(getattr(compiled, name), getattr(eager, name))
    for name in ("steps_used", "reason", "selected_indices"):
        assert torch.equal(getattr(compiled, name), getattr(eager, name))
    if kind in ("levels", "no levels"):
        assert torch.equal(eager.candidate[:, :, :2], PREFIX[:, :, :2])
        assert eager.candidate[:, :, 2:].abs().max() <= 0.5
    if kind == "rejecting increases":
        assert (eager.reason == StopReason.ENERGY_INCREASE).all()
