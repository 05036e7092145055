"""The descent loop, compared with closed-form solutions of simple energies.

Shapes: B batch, U units, N steps.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import MODES, descend, double_well, few_examples, normal, quadratic, slope

from ebt_policy.energy import (
    ClippedGradient,
    Descent,
    DescentError,
    FixedSteps,
    FrozenEntries,
    GradientNorm,
    LangevinNoise,
    LevelSchedule,
    NesterovMomentum,
    Projection,
    RandomSteps,
    SharedFirstGradient,
    StopReason,
    select,
)
from ebt_policy.energy.sampling import cosine_noise, draw_normal

# -- the plain loop -------------------------------------------------------------------------------


@few_examples
@given(
    curvature=st.floats(0.1, 10),
    fraction=st.floats(0.01, 1.9),
    centre=st.floats(-5, 5),
    steps=st.integers(1, 20),
)
def test_quadratic_follows_the_closed_form(curvature, fraction, centre, steps):
    init = normal(2, 3, 4)
    result = descend(quadratic(curvature, centre), init, steps, fraction / curvature)
    for k, x in enumerate(result.path):
        torch.testing.assert_close(x, centre + (1 - fraction) ** k * (init - centre))
        torch.testing.assert_close(result.energies[k], quadratic(curvature, centre)(x))
    gradient = curvature * (torch.stack(result.path[:-1]) - centre)
    torch.testing.assert_close(result.grad_norms, gradient.norm(dim=-1))
    assert result.candidate is result.path[-1]
    assert (result.steps_used == steps).all() and (result.reason == StopReason.STEPS_DONE).all()
    assert not result.diverged.any()


def test_shapes_without_the_final_energy():
    result = descend(quadratic(), normal(2, 3, 4, 5), 4, 0.1, final_energy=False)
    assert result.candidate.shape == (2, 3, 4, 5) and len(result.path) == 5
    assert result.energies.shape == result.grad_norms.shape == (4, 2, 3)
    assert not result.has_final_energy
    single = descend(quadratic(), normal(1, 1, 2), 1, 0.1, final_energy=False)
    assert not single.diverged.any(), "one energy alone shows no divergence"


def test_step_sizes_can_differ_by_step_and_by_unit():
    init = normal(2, 3, 4)
    by_step = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    result = descend(quadratic(), init, 3, by_step)
    torch.testing.assert_close(result.candidate, init * (1 - by_step).prod())
    by_unit = torch.rand(2, 3, dtype=torch.float64)
    result = descend(quadratic(), init, 3, by_unit)
    torch.testing.assert_close(result.candidate, init * (1 - by_unit).pow(3).unsqueeze(-1))


@few_examples
@given(curvature=st.floats(0.1, 10), excess=st.floats(1.001, 1.5))
def test_step_size_above_two_over_curvature_is_divergence(curvature, excess):
    init = torch.cat([normal(1, 3, 2), torch.zeros(1, 3, 2)])
    result = descend(quadratic(curvature), init, 5, excess * 2 / curvature)
    assert result.diverged[0].all()
    assert not result.diverged[1].any(), "a unit that starts at its minimum stays there"
    fine = descend(quadratic(curvature), init, 5, 2 / curvature / excess)
    assert not fine.diverged.any()


def test_double_well_descends_to_both_modes():
    init = normal(4, 8, 2).clamp(-1.5, 1.5)
    init = init + 0.05 * init.sign()
    result = descend(double_well, init, 200, 0.2)
    torch.testing.assert_close(result.candidate, init.sign(), atol=1e-4, rtol=0)
    assert (result.energies[-1] < 1e-6).all()
    mean = descend(double_well, torch.zeros(1, 1, 2), 5, 0.2).candidate
    assert (mean == 0).all() and double_well(mean).item() == 0.5  # stuck on the ridge


@pytest.mark.parametrize("broken", ["energy", "gradient", "candidate"])
@pytest.mark.parametrize("mode", MODES)
def test_nan_or_inf_is_reported_with_its_step(broken, mode):
    """x takes the values 0, 1, 2, 3, ..., so a failure at x = 3 occurs after 3 steps."""

    def energy(x, level):
        value = slope(x)
        if broken == "energy":
            return torch.where(value <= -3, torch.nan, value)
        if broken == "gradient":  # the energy stays finite: sqrt(0) has an infinite slope
            return value + (3 - x).abs().sqrt().sum(-1) * 1e-12
        return value

    def project(x):
        return torch.where(x >= 3, torch.inf, x) if broken == "candidate" else x

    with mode(), pytest.raises(DescentError, match="after 3 of 5 steps"):
        descend(energy, torch.zeros(2, 1, 1), 5, 1.0, constraints=(Projection(project),))


def test_nan_gradient_is_not_convergence():
    def energy(x, level):
        return x.abs().sqrt().sum(-1)  # the gradient at 0 is infinity times zero

    with torch.no_grad(), pytest.raises(DescentError, match="after 0 of 1 steps"):
        descend(energy, torch.zeros(1, 1, 2), 5, 0.1, stop=GradientNorm(1e-3))


# -- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.5])
def test_langevin_has_the_stationary_variance_of_its_chain(fraction):
    """x' = r (x + s z) with r = 1 - a L has the stationary variance r^2 s^2 / (1 - r^2)."""
    curvature, sigma, ratio = 2.0, 0.3, 1 - fraction
    result = descend(
        quadratic(curvature),
        torch.zeros(1, 20_000, 1, dtype=torch.float64),
        40,
        fraction / curvature,
        noise=LangevinNoise(sigma),
        final_energy=False,
        generator=torch.Generator().manual_seed(0),
    )
    want = ratio**2 * sigma**2 / (1 - ratio**2)
    assert result.candidate.var().item() == pytest.approx(want, rel=0.05)
    assert result.candidate.mean().item() == pytest.approx(0, abs=5 * (want / 20_000) ** 0.5)


def test_noise_can_have_a_schedule_and_be_drawn_beforehand():
    sigma = cosine_noise(0.2, 0.002)
    assert [sigma(0, 5), sigma(2, 5), sigma(4, 5)] == pytest.approx([0.2, 0.101, 0.002])
    assert sigma(0, 1) == 0.2
    init, z = normal(2, 3, 1), normal(2, 4, 3, 1, seed=1)
    result = descend(quadratic(), init, 4, 0.1, noise=LangevinNoise(sigma, z))
    x = init
    for k in range(4):
        x = 0.9 * (x + sigma(k, 4) * z[:, k])
    torch.testing.assert_close(result.candidate, x)


def test_row_generators_make_a_row_independent_of_its_batch():
    def run(rows):
        generators = [torch.Generator().manual_seed(r) for r in rows]
        descent = Descent(RandomSteps((5, 5), 0.1, (0.5, 2.0)), noise=LangevinNoise(0.1))
        init = draw_normal(torch.empty(len(rows), 4, 3), generators)
        return select(descent(double_well, init, generator=generators), 2)

    batched, alone = run([5, 6, 7, 8]), run([7])
    assert torch.equal(batched.candidate[2:3], alone.candidate)
    assert torch.equal(batched.energies[:, 2:3], alone.energies)
    with pytest.raises(ValueError, match="2 generators for a batch of 3 rows"):
        draw_normal(torch.empty(3, 1), [torch.Generator(), torch.Generator()])


def test_the_same_seed_gives_the_same_descent():
    def run(seed):
        g = torch.Generator().manual_seed(seed)
        descent = Descent(RandomSteps((1, 9), 0.1), noise=LangevinNoise(0.2))
        return descent(double_well, normal(2, 2, 2), generator=g)

    assert torch.equal(run(3).candidate, run(3).candidate)
    assert not torch.equal(run(3).candidate, run(4).candidate)


# -- step control ---------------------------------------------------------------------------------


def test_step_size_range_draws_one_factor_per_unit():
    init = normal(50, 20, 3)
    path = Descent(RandomSteps((3, 3), 0.1, (0.5, 2.0)))(quadratic(), init).path
    ratios = torch.stack([b / a for a, b in pairwise(path)])
    factor = (1 - ratios) / 0.1  # (N, B, U, *)
    torch.testing.assert_close(factor, factor[:1, ..., :1].expand_as(factor))
    unit_factors = factor[0, ..., 0].flatten()
    assert (
        len(unit_factors.unique()) == 1000
        and unit_factors.min() >= 0.5
        and unit_factors.max() <= 2.0
    )
    assert unit_factors.mean().item() == pytest.approx(1.25, abs=0.05)
    assert unit_factors.var().item() == pytest.approx(1.5**2 / 12, rel=0.1)


def test_step_range_includes_both_ends():
    lengths = {
        len(Descent(RandomSteps((2, 4), 0.1))(slope, torch.zeros(1, 1, 1)).grad_norms)
        for _ in range(60)
    }
    assert lengths == {2, 3, 4}


def test_momentum_equals_nesterov():
    curvature, a, mu = torch.tensor([1.0, 5.0], dtype=torch.float64), 0.1, 0.8
    x, v = normal(2, 3, 2), torch.zeros(2, 3, 2)
    result = descend(quadratic(curvature), x, 6, a, update=NesterovMomentum(mu))
    for step in result.path[1:]:
        v = mu * v - a * curvature * (x + mu * v)
        x = x + v
        torch.testing.assert_close(step, x)


def test_max_grad_norm_clips_each_unit_separately():
    init = torch.tensor([[[3.0, 4.0], [0.03, 0.04]]])
    result = descend(quadratic(), init, 1, 0.5, update=ClippedGradient(1.0))
    torch.testing.assert_close(
        result.candidate, torch.tensor([[[3.0 - 0.3, 4.0 - 0.4], [0.015, 0.02]]])
    )
    torch.testing.assert_close(result.grad_norms[0, 0], torch.tensor([5.0, 0.05]))


# -- constraints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"noise": LangevinNoise(0.5)},
        {"update": NesterovMomentum(0.9)},
        {"stop": GradientNorm(0.5)},
    ],
)
def test_frozen_prefix_and_projection_hold_at_every_step(extra):
    init = 2 * normal(3, 4, 5, 2)
    frozen = (torch.arange(5) < 2).view(1, 1, 5, 1)
    constraints = (Projection(lambda x: x.clamp(-1, 1)), FrozenEntries(frozen))
    result = descend(quadratic(1.0, 4.0), init, 8, 0.4, constraints=constraints, **extra)
    assert len(result.path) > 2
    for x in result.path:
        assert torch.equal(x[:, :, :2], init[:, :, :2])
    for x in result.path[1:]:
        assert x[:, :, 2:].abs().max() <= 1
    free = (4.0 - init[:, :, 2:]).flatten(2).norm(dim=-1)
    if "noise" not in extra:
        torch.testing.assert_close(result.grad_norms[0], free)  # frozen entries do not count


def test_final_projection_applies_to_stopped_units():
    calls = []

    def on_the_way(x):
        calls.append("on the way")
        return x.clamp(max=0.7)

    def final(x):
        calls.append("final")
        return x.clamp(max=0.5)

    init = torch.tensor([[[1.0]], [[-3.0]]])  # the first starts in its minimum, out of bounds
    constraints = (Projection(on_the_way, final),)
    result = descend(
        quadratic(1.0, 1.0), init, 3, 0.1, constraints=constraints, stop=GradientNorm(1e-3)
    )
    assert calls == ["on the way", "on the way", "final"]
    assert result.candidate[0].item() == 0.5 and result.steps_used[0].item() == 0


# -- energies of the result -----------------------------------------------------------------------


def test_score_replaces_the_final_energy():
    init = torch.tensor([[[0.9], [5.0], [0.5]]])
    score = lambda x: -x[..., 0]  # noqa: E731
    result = Descent(FixedSteps(2, 0.1))(quadratic(), init, score=score)
    torch.testing.assert_close(result.energies[-1], score(result.candidate))
    torch.testing.assert_close(result.energies[0], quadratic()(init))


def test_energy_decrease_excludes_level_differences():
    def energy(x, level):  # 10 more at level 1, for every candidate
        return quadratic()(x) + 10 * level

    init = torch.tensor([[[1.0], [3.0]]])
    result = Descent(LevelSchedule(torch.tensor([0.0, 1.0]), 0.1))(energy, init)
    torch.testing.assert_close(result.energy_decrease, torch.tensor([[0.1, 0.9]]))  # 0.1 |dE/dx|^2


# -- one first gradient for all candidates --------------------------------------------------------


@few_examples
@given(units=st.integers(1, 3), candidates=st.integers(1, 4), steps=st.integers(1, 3))
def test_shared_first_gradient_is_exact_for_a_quadratic(units, candidates, steps):
    centre = normal(2, units, 3, seed=1)
    unit_counts = []

    def energy(x, level):
        """Return |x - c|^2 / 2 at level 0 and add a double well later; c depends on the context."""
        unit_counts.append(x.shape[1])
        c = centre.repeat_interleave(x.shape[1] // units, dim=1)
        return quadratic(centre=c)(x) + level * double_well(x)

    init = normal(2, units * candidates, 3, seed=2)
    schedule = LevelSchedule(torch.linspace(0, 1, steps + 1, dtype=torch.float64), 0.2)
    plain = select(Descent(schedule)(energy, init), candidates)
    unit_counts.clear()
    shared = select(Descent(schedule, SharedFirstGradient(candidates))(energy, init), candidates)
    assert unit_counts == [units] + [units * candidates] * steps
    torch.testing.assert_close(shared.path, plain.path)
    for name in ("candidate", "energies", "grad_norms", "energy_decrease"):
        torch.testing.assert_close(getattr(shared, name), getattr(plain, name))
