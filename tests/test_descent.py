"""The refinement loop, against closed forms on energies with known answers.

Shapes: B batch, U units, N steps.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import MODES, double_well, few, normal, quadratic, slope

from ebt_policy.energy import DescentError, descend
from ebt_policy.energy.sampling import cosine_noise, draw_normal

# -- the plain loop -------------------------------------------------------------------------------


@few
@given(
    curvature=st.floats(0.1, 10),
    fraction=st.floats(0.01, 1.9),
    centre=st.floats(-5, 5),
    steps=st.integers(1, 20),
)
def test_quadratic_follows_the_closed_form(curvature, fraction, centre, steps):
    init = normal(2, 3, 4)
    found = descend(quadratic(curvature, centre), init, steps=steps, step_size=fraction / curvature)
    for k, x in enumerate(found.path):
        torch.testing.assert_close(x, centre + (1 - fraction) ** k * (init - centre))
        torch.testing.assert_close(found.energies[k], quadratic(curvature, centre)(x))
    gradient = curvature * (torch.stack(found.path[:-1]) - centre)
    torch.testing.assert_close(found.grad_norms, gradient.norm(dim=-1))
    assert found.candidate is found.path[-1]
    assert (found.steps_used == steps).all()
    assert not found.diverged.any()


def test_shapes_without_the_final_energy():
    found = descend(quadratic(), normal(2, 3, 4, 5), steps=4, step_size=0.1, final_energy=False)
    assert found.candidate.shape == (2, 3, 4, 5) and len(found.path) == 5
    assert found.energies.shape == found.grad_norms.shape == (4, 2, 3)
    one = descend(quadratic(), normal(1, 1, 2), steps=1, step_size=0.1, final_energy=False)
    assert not one.diverged.any(), "one energy tells nothing"


def test_step_sizes_can_differ_by_step_and_by_unit():
    init = normal(2, 3, 4)
    by_step = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    found = descend(quadratic(), init, steps=3, step_size=by_step)
    torch.testing.assert_close(found.candidate, init * (1 - by_step).prod())
    by_unit = torch.rand(2, 3, dtype=torch.float64)
    found = descend(quadratic(), init, steps=3, step_size=by_unit)
    torch.testing.assert_close(found.candidate, init * (1 - by_unit).pow(3).unsqueeze(-1))


@few
@given(curvature=st.floats(0.1, 10), excess=st.floats(1.001, 1.5))
def test_a_step_size_over_two_over_curvature_is_reported_as_divergence(curvature, excess):
    init = torch.cat([normal(1, 3, 2), torch.zeros(1, 3, 2)])
    found = descend(quadratic(curvature), init, steps=5, step_size=excess * 2 / curvature)
    assert found.diverged[0].all()
    assert not found.diverged[1].any(), "a unit that starts in its minimum stays there"
    fine = descend(quadratic(curvature), init, steps=5, step_size=2 / curvature / excess)
    assert not fine.diverged.any()


def test_double_well_keeps_the_modes_that_their_mean_would_lose():
    init = normal(4, 8, 2).clamp(-1.5, 1.5)
    init = init + 0.05 * init.sign()
    found = descend(double_well, init, steps=200, step_size=0.2)
    torch.testing.assert_close(found.candidate, init.sign(), atol=1e-4, rtol=0)
    assert (found.energies[-1] < 1e-6).all()
    mean = descend(double_well, torch.zeros(1, 1, 2), steps=5, step_size=0.2).candidate
    assert (mean == 0).all() and double_well(mean).item() == 0.5  # stuck on the ridge


@pytest.mark.parametrize("broken", ["energy", "gradient", "candidate"])
@pytest.mark.parametrize("mode", MODES)
def test_nan_or_inf_is_reported_with_its_step(broken, mode):
    """x goes 0, 1, 2, 3, ...: whatever breaks at x = 3 breaks after 3 steps."""

    def energy(x, level):
        value = slope(x)
        if broken == "energy":
            return torch.where(value <= -3, torch.nan, value)
        if broken == "gradient":  # the energy stays finite: sqrt(0) has an infinite slope
            return value + (3 - x).abs().sqrt().sum(-1) * 1e-12
        return value

    def project(x, done):
        return torch.where(x >= 3, torch.inf, x) if broken == "candidate" else x

    with mode(), pytest.raises(DescentError, match="after 3 of 5 steps"):
        descend(energy, torch.zeros(2, 1, 1), steps=5, step_size=1.0, project=project)


def test_a_gradient_that_is_nan_is_not_taken_for_convergence():
    def energy(x, level):
        return x.abs().sqrt().sum(-1)  # at 0 the slope is infinite times zero

    with torch.no_grad(), pytest.raises(DescentError, match="after 0 of 1 steps"):
        descend(energy, torch.zeros(1, 1, 2), steps=5, step_size=0.1, stop_grad_norm=1e-3)


# -- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.5])
def test_langevin_has_the_stationary_variance_of_its_chain(fraction):
    """x' = r (x + s z) with r = 1 - a L has the variance r^2 s^2 / (1 - r^2)."""
    curvature, sigma, ratio = 2.0, 0.3, 1 - fraction
    found = descend(
        quadratic(curvature),
        torch.zeros(1, 20_000, 1, dtype=torch.float64),
        steps=40,
        step_size=fraction / curvature,
        noise=sigma,
        final_energy=False,
        generator=torch.Generator().manual_seed(0),
    )
    want = ratio**2 * sigma**2 / (1 - ratio**2)
    assert found.candidate.var().item() == pytest.approx(want, rel=0.05)
    assert found.candidate.mean().item() == pytest.approx(0, abs=5 * (want / 20_000) ** 0.5)


def test_noise_schedule_and_given_normals():
    sigma = cosine_noise(0.2, 0.002)
    assert [sigma(0, 5), sigma(2, 5), sigma(4, 5)] == pytest.approx([0.2, 0.101, 0.002])
    assert sigma(0, 1) == 0.2
    init, z = normal(2, 3, 1), normal(2, 4, 3, 1, seed=1)
    found = descend(quadratic(), init, steps=4, step_size=0.1, noise=sigma, normals=z)
    x = init
    for k in range(4):
        x = 0.9 * (x + sigma(k, 4) * z[:, k])
    torch.testing.assert_close(found.candidate, x)


def test_row_generators_make_a_row_independent_of_its_batch():
    def run(rows):
        generators = [torch.Generator().manual_seed(r) for r in rows]
        return descend(
            double_well,
            draw_normal(torch.empty(len(rows), 4, 3), generators),
            steps=5,
            step_size=0.1,
            noise=0.1,
            step_size_range=(0.5, 2.0),
            candidates=2,
            generator=generators,
        )

    together, alone = run([5, 6, 7, 8]), run([7])
    assert torch.equal(together.candidate[2:3], alone.candidate)
    assert torch.equal(together.energies[:, 2:3], alone.energies)
    with pytest.raises(ValueError, match="2 generators for a batch of 3 rows"):
        draw_normal(torch.empty(3, 1), [torch.Generator(), torch.Generator()])


def test_the_same_seed_gives_the_same_descent():
    def run(seed):
        g = torch.Generator().manual_seed(seed)
        return descend(double_well, normal(2, 2, 2), steps=(1, 9), step_size=0.1, noise=0.2,
                       generator=g)  # fmt: skip

    assert torch.equal(run(3).candidate, run(3).candidate)
    assert not torch.equal(run(3).candidate, run(4).candidate)


# -- step control ---------------------------------------------------------------------------------


def test_step_size_range_draws_one_factor_a_unit():
    init = normal(50, 20, 3)
    found = descend(quadratic(), init, steps=3, step_size=0.1, step_size_range=(0.5, 2.0))
    ratios = torch.stack([b / a for a, b in zip(found.path, found.path[1:], strict=False)])
    factor = (1 - ratios) / 0.1  # (N, B, U, *)
    torch.testing.assert_close(factor, factor[:1, ..., :1].expand_as(factor))
    drawn = factor[0, ..., 0].flatten()
    assert len(drawn.unique()) == 1000 and drawn.min() >= 0.5 and drawn.max() <= 2.0
    assert drawn.mean().item() == pytest.approx(1.25, abs=0.05)
    assert drawn.var().item() == pytest.approx(1.5**2 / 12, rel=0.1)


def test_a_range_of_steps_is_drawn_from_both_ends():
    lengths = {
        len(descend(slope, torch.zeros(1, 1, 1), steps=(2, 4), step_size=0.1).grad_norms)
        for _ in range(60)
    }
    assert lengths == {2, 3, 4}


def test_momentum_is_nesterovs():
    curvature, a, mu = torch.tensor([1.0, 5.0], dtype=torch.float64), 0.1, 0.8
    x, v = normal(2, 3, 2), torch.zeros(2, 3, 2)
    found = descend(quadratic(curvature), x, steps=6, step_size=a, momentum=mu)
    for step in found.path[1:]:
        v = mu * v - a * curvature * (x + mu * v)
        x = x + v
        torch.testing.assert_close(step, x)


def test_energy_scaled_steps_are_longer_where_energy_is_high():
    x = 0.3 * normal(2, 3, 2)
    found = descend(quadratic(), x, steps=3, step_size=0.1, energy_scaled=True)
    for step in found.path[1:]:
        x = x - 0.1 * quadratic()(x).exp().unsqueeze(-1) * x
        torch.testing.assert_close(step, x)
    high = descend(quadratic(1.0, 100.0), x, steps=1, step_size=1e-9, energy_scaled=True)
    assert high.candidate.isfinite().all(), "the exponent is capped"


def test_max_grad_norm_clips_each_unit_by_itself():
    init = torch.tensor([[[3.0, 4.0], [0.03, 0.04]]])
    found = descend(quadratic(), init, steps=1, step_size=0.5, max_grad_norm=1.0)
    torch.testing.assert_close(
        found.candidate, torch.tensor([[[3.0 - 0.3, 4.0 - 0.4], [0.015, 0.02]]])
    )
    torch.testing.assert_close(found.grad_norms[0, 0], torch.tensor([5.0, 0.05]))


# -- constraints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"noise": 0.5}, {"momentum": 0.9}, {"stop_grad_norm": 0.5}])
def test_frozen_prefix_and_projection_hold_at_every_step(extra):
    init = 2 * normal(3, 4, 5, 2)
    frozen = (torch.arange(5) < 2).view(1, 1, 5, 1)
    found = descend(
        quadratic(1.0, 4.0),
        init,
        steps=8,
        step_size=0.4,
        frozen=frozen,
        project=lambda x, done: x.clamp(-1, 1),
        **extra,
    )
    assert len(found.path) > 2
    for x in found.path:
        assert torch.equal(x[:, :, :2], init[:, :, :2])
    for x in found.path[1:]:
        assert x[:, :, 2:].abs().max() <= 1
    free = (4.0 - init[:, :, 2:]).flatten(2).norm(dim=-1)
    if "noise" not in extra:
        torch.testing.assert_close(found.grad_norms[0], free)  # the frozen part does not count


def test_projection_is_told_how_many_steps_are_done_and_reaches_stopped_units():
    seen = []

    def project(x, done):
        seen.append(done)
        return x.clamp(max=0.5)

    init = torch.tensor([[[1.0]], [[-3.0]]])  # the first starts in its minimum, out of bounds
    found = descend(quadratic(1.0, 1.0), init, steps=3, step_size=0.1, project=project,
                    stop_grad_norm=1e-3)  # fmt: skip
    assert seen == [1, 2, 3]
    assert found.candidate[0].item() == 0.5 and found.steps_used[0].item() == 0


# -- candidates -----------------------------------------------------------------------------------


@few
@given(units=st.integers(1, 3), m=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_best_of_m_is_the_argmin(units, m, seed):
    options: dict[str, Any] = {"steps": 3, "step_size": 0.05}
    init = normal(2, units * m, 3, seed=seed)
    every = descend(double_well, init, **options)
    best = descend(double_well, init, candidates=m, **options)
    for b in range(2):
        for u in range(units):
            group = range(u * m, (u + 1) * m)
            winner = min(group, key=lambda i: float(every.energies[-1, b, i]))
            assert torch.equal(best.candidate[b, u], every.candidate[b, winner])
            assert torch.equal(best.energies[:, b, u], every.energies[:, b, winner])
            assert torch.equal(best.grad_norms[:, b, u], every.grad_norms[:, b, winner])
            assert best.energies[-1, b, u] <= every.energies[-1, b, u * m]
            assert best.chosen is None or best.chosen[b, u] == winner
    assert best.steps_used.shape == (2, units)
    assert best.path[-1].shape == init.shape
    assert (best.chosen is None) == (m == 1)
    assert torch.equal(best.route[-1], best.candidate)  # each unit's own path


def test_select_drop_takes_the_candidate_that_lost_the_most():
    init = torch.tensor([[[0.9], [5.0], [0.5]]])
    kept: dict[str, Any] = {"steps": 2, "step_size": 0.1, "candidates": 3}
    assert descend(quadratic(), init, **kept).energies[0, 0, 0] == pytest.approx(0.125)
    found = descend(quadratic(), init, **kept, select="drop")
    torch.testing.assert_close(found.candidate, torch.tensor([[[5.0 * 0.81]]]))
    torch.testing.assert_close(found.drop, torch.tensor([[12.5 * (1 - 0.81**2)]]))


def test_the_drop_along_levels_leaves_out_what_the_levels_change():
    def energy(x, level):  # ten higher at each level, whatever the candidate
        return quadratic()(x) + 10 * level

    init = torch.tensor([[[1.0], [3.0]]])
    found = descend(energy, init, steps=1, step_size=0.1, levels=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found.drop, torch.tensor([[0.1, 0.9]]))  # 0.1 |dE/dx|^2


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": (3, 2)}, "range must not be empty"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"step_size": float("nan")}, "step_size must be positive"),
        ({"step_size": torch.ones(3)}, r"step_size must be a number, \(2,\) or \(2, 4\)"),
        ({"step_size": torch.ones(4, 2)}, r"got \(4, 2\)"),
        ({"step_size_range": (0.0, 1.0)}, "positive and ordered"),
        ({"step_size_range": (2.0, 1.0)}, "positive and ordered"),
        ({"levels": torch.linspace(0, 1, 2)}, "2 steps need 3 levels, got 2"),
        ({"noise": -0.1}, "noise must not be negative"),
        ({"noise": 0.1, "normals": torch.zeros(2, 3, 4, 1)}, r"normals must be \(B, 2, U"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
        ({"stop_grad_norm": -1.0}, "stop_grad_norm must be positive"),
        ({"stop_change": 0.0}, "stop_change must be positive"),
        ({"stop_change": 0.1}, "stop_change needs levels"),
        ({"deadline_s": 0.0}, "deadline must be a positive"),
        ({"deadline_s": float("nan")}, "deadline must be a positive"),
        ({"candidates": 3}, "multiple of candidates=3"),
        ({"candidates": 0}, "multiple of candidates=0"),
        ({"candidates": 2, "final_energy": False}, "final_energy=True"),
        (
            {"candidates": 2, "select": "highest"},
            "one of energy, drop, medoid, .*'highest'",
        ),
        ({"noise": 0.1, "generator": [torch.Generator()]}, "1 generators for a batch of 2 rows"),
        ({"init": torch.zeros(2, 4)}, r"init must be \(B, U, ...\)"),
        ({"energy": lambda x, level: x.sum((1, 2))}, r"energy must be \(2, 4\), one a unit"),
    ],
)
def test_bad_options_are_refused(options, message):
    given_: dict[str, Any] = {
        "energy": quadratic(),
        "init": torch.ones(2, 4, 1),
        "steps": 2,
        "step_size": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        descend(**{**given_, **options})


# -- a first step for all candidates --------------------------------------------------------------


@few
@given(units=st.integers(1, 3), candidates=st.integers(1, 4), steps=st.integers(1, 3))
def test_a_shared_start_changes_nothing_where_candidates_share_a_quadratic(
    units, candidates, steps
):
    centre = normal(2, units, 3, seed=1)
    asked = []

    def energy(x, level):
        """|x - c|^2 / 2 at level 0, something else later; c is the context's."""
        asked.append(x.shape[1])
        c = centre.repeat_interleave(x.shape[1] // units, dim=1)
        return quadratic(centre=c)(x) + level * double_well(x)

    init = normal(2, units * candidates, 3, seed=2)
    options: dict[str, Any] = {
        "steps": steps, "step_size": 0.2, "candidates": candidates,
        "levels": torch.linspace(0, 1, steps + 1, dtype=torch.float64),
    }  # fmt: skip
    plain = descend(energy, init, **options)
    asked.clear()
    shared = descend(energy, init, shared_start=True, **options)
    assert asked == [units] + [units * candidates] * steps
    asked.clear()
    descend(energy, init, shared_start=True, deadline_s=60.0, **options)
    assert asked == [units * candidates] * (steps + 1)  # the first step is to be like the others
    torch.testing.assert_close(shared.path, plain.path)
    for name in ("candidate", "energies", "grad_norms", "drop"):
        torch.testing.assert_close(getattr(shared, name), getattr(plain, name))
