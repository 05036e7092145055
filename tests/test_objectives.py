"""Losses of the objectives by their formulas, their descent at inference, and their options.

Shapes: B batch, U units.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from landscapes import SMALL_OBJECTIVES, level_quadratic, quadratic

from ebt_policy.energy import (
    LevelSchedule,
    PlainGradient,
    SharedFirstGradient,
    ZeroInitGradient,
)
from ebt_policy.energy.candidate_space import corrupt, squared_error
from ebt_policy.energy.objectives import S1, S2, Contrastive, Equilibrium, Flow, info_nce
from ebt_policy.models.energy_model import OBJECTIVES

# -- formulas -------------------------------------------------------------------------------------


def test_corruption_follows_the_straight_path():
    y, n = torch.ones(2, 3, 4, 5), -torch.ones(2, 3, 4, 5)
    g = torch.rand(2, 3)
    torch.testing.assert_close(corrupt(y, n, g)[..., 0, 0], 2 * g - 1)
    assert torch.equal(squared_error(y, n), torch.full((2, 3), 4.0))


def test_info_nce_is_the_softmax_of_negative_energies():
    positive, negatives = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0, 3.0], [0.0, 0.0]])
    first = math.log(math.exp(-1) + math.exp(-2) + math.exp(-3)) + 1
    want = (first + math.log(3)) / 2
    assert info_nce(positive, negatives).item() == pytest.approx(want, rel=1e-6)


def test_flow_loss_equals_its_formula():
    y = torch.randn(5, 2, 3)
    objective = Flow()
    noise = objective.sample_noise(y)
    n, g = noise["normal"], noise["level"].unsqueeze(-1)
    loss, _ = objective(level_quadratic, y, noise)
    x = g * y + (1 - g) * n
    want = (-(x - g) - (y - n)).square().mean()  # dE/dx = x - g
    torch.testing.assert_close(loss, want)


def test_several_noise_samples_share_their_target():
    objective = Flow(condition_on_noise_level=False, noise_samples_per_target=4)
    y = torch.randn(5, 2, 3)
    noise = objective.sample_noise(y)
    assert noise["normal"].shape == (5, 8, 3) and noise["level"].shape == (5, 8)
    loss, _ = objective(quadratic(), y, noise)
    repeated = torch.stack([y[:, i // 4] for i in range(8)], dim=1)
    single, _ = Flow(condition_on_noise_level=False)(quadratic(), repeated, noise)
    torch.testing.assert_close(loss, single)


def test_equilibrium_decays_to_zero_at_the_data():
    objective = Equilibrium(decay_width=0.2)
    level = torch.tensor([[0.0, 0.5, 0.8, 0.9, 1.0]])
    torch.testing.assert_close(
        objective.velocity_scale(level), torch.tensor([[1.0, 1.0, 1.0, 0.5, 0.0]])
    )
    assert not objective.level_conditioned
    y = torch.randn(2, 1, 3)
    clean = {"normal": torch.randn(2, 1, 3), "level": torch.ones(2, 1)}
    loss, _ = objective(quadratic(1.0, y), y, clean)
    assert loss == 0, "a minimum at the demonstration has no loss"
    fast, _ = Flow(condition_on_noise_level=False)(quadratic(1.0, y), y, clean)
    assert fast > 0


@pytest.mark.parametrize("width", [0.1, 0.2, 0.5, 1.0])
def test_equilibrium_converges_for_any_number_of_steps(width):
    """The energy of one demonstration at 0 is a Huber loss; candidates start at distance 1."""

    def energy(x: torch.Tensor, level: torch.Tensor | None = None) -> torch.Tensor:
        distance = x.flatten(2).norm(dim=-1)
        return torch.where(distance < width, distance.square() / (2 * width), distance - width / 2)

    objective = Equilibrium(decay_width=width)
    start = torch.nn.functional.normalize(torch.randn(1, 1, 4), dim=-1)
    for steps in (1, 2, 3, 5, 8, 10, 25, 50, 250):
        x = objective.descent(steps)(energy, start).candidate
        assert x.norm() < 0.2 * width, steps
        x = objective.descent(steps, level=0.7)(energy, 0.3 * start).candidate
        assert x.norm() < 0.2 * width, steps


def test_s1_averages_the_loss_of_its_steps():
    objective = S1(steps=3, step_size=0.5)
    y = torch.randn(4, 2, 3)
    noise = objective.sample_noise(y)
    loss, metrics = objective(quadratic(), y, noise)
    step_losses = [(0.5**k * noise["init"] - y).square().mean() for k in (1, 2, 3)]
    torch.testing.assert_close(loss, torch.stack(step_losses).mean())
    torch.testing.assert_close(metrics["last_step_loss"], step_losses[-1])
    loss.backward()
    # Steps are detached from each other: each candidate is x - a x with a constant x.
    a = torch.tensor(0.5, requires_grad=True)
    path = [0.5**k * noise["init"] for k in (0, 1, 2)]
    torch.stack([((1 - a) * x - y).square().mean() for x in path]).mean().backward()
    torch.testing.assert_close(objective.step_size.grad, a.grad)


def test_s2_trains_on_the_last_step_only():
    objective = S2(steps=(3, 3), noise=(0.1, 0.1), momentum=0.5, step_size=0.2)
    y = torch.randn(4, 2, 3)
    noise = objective.sample_noise(y)
    assert noise["steps"] == 3
    assert (noise["step_size"] >= 0.1).all() and (noise["step_size"] <= 0.4).all()
    curvature = torch.ones((), requires_grad=True)
    loss, metrics = objective(quadratic(curvature), y, noise)
    x, v, a = noise["init"], torch.zeros_like(y), noise["step_size"].unsqueeze(-1)
    last = torch.ones((), requires_grad=True)
    for k in range(3):
        x = x + 0.1 * noise["langevin_noise"][:, k]
        v = 0.5 * v - a * (last if k == 2 else 1.0) * (x + 0.5 * v)
        x = x + v
    want = (x - y).square().mean()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(metrics["candidate"], x.detach())
    loss.backward()
    want.backward()
    torch.testing.assert_close(curvature.grad, last.grad)


def test_s2_draws_its_number_of_steps():
    objective = S2(steps=(2, 4))
    samples = [objective.sample_noise(torch.zeros(1, 1, 2)) for _ in range(40)]
    assert {d["steps"] for d in samples} == {2, 3, 4}
    assert all(d["langevin_noise"].shape == (1, d["steps"], 1, 2) for d in samples)


def test_contrastive_loss_equals_its_formula():
    objective = Contrastive(negatives=3, steps=2, step_size=0.1, noise=(0.0, 0.0))
    y = torch.randn(4, 2, 5)
    noise = objective.sample_noise(y)
    curvature = torch.tensor(0.7, requires_grad=True)
    loss, metrics = objective(quadratic(curvature), y, noise)
    x = noise["init"] * (1 - 0.1 * 0.7) ** 2  # far below the clipping norm
    last = torch.tensor(0.7, requires_grad=True)  # the chains themselves pass no gradient
    e, n = quadratic(last)(y), quadratic(last)(x).unflatten(1, (2, 3))
    nce = torch.logsumexp(torch.cat([-e.unsqueeze(2), -n], dim=2), dim=2) + e
    energies = torch.cat([e.flatten(), n.flatten()])
    want = nce.mean() + 0.001 * energies.square().mean()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(metrics["energy_gap"], (n.mean() - e.mean()).detach())
    loss.backward()
    want.backward()
    torch.testing.assert_close(curvature.grad, last.grad)


@pytest.mark.parametrize("name", SMALL_OBJECTIVES)
def test_inference_descent_matches_the_objective(name):
    objective = SMALL_OBJECTIVES[name]()
    energy = level_quadratic if objective.level_conditioned else quadratic(0.1)
    for steps in (1, 5):
        descent = objective.descent(steps)
        assert descent.schedule.has_levels == objective.level_conditioned
        result = descent(energy, torch.randn(2, 3, 2) / 10)
        assert len(result.path) == steps + 1 and not result.candidate.requires_grad
    if isinstance(objective, Flow):
        assert float(descent.schedule.steps(torch.zeros(1, 1, 1)).sizes[0]) >= 1 / 5 - 1e-6


def test_flow_descends_from_an_intermediate_level():
    descent = Flow().descent(4, level=0.6)
    assert isinstance(descent.schedule, LevelSchedule) and type(descent.gradient) is PlainGradient
    assert descent.schedule.size == pytest.approx(0.1)
    assert descent.schedule.levels.tolist() == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
    shared = Flow().descent(4, num_candidates=3).gradient
    assert isinstance(shared, SharedFirstGradient) and shared.num_candidates == 3


def test_zero_init_needs_no_backward_pass():
    def first(objective):
        """Return the gradient rule at inference, and whether training starts away from zero."""
        used = []

        def energy(x, level):
            used.append(x)
            return quadratic()(x)

        target = torch.ones(1, 2, 3)
        objective(energy, target, objective.sample_noise(target))
        return type(objective.descent(2).gradient), bool(used[0].any())

    assert first(S1(init_std=0.0)) == (ZeroInitGradient, False)
    assert first(S1()) == (PlainGradient, True)
    # In training, corrupted candidates do not start at zero.
    assert first(S1(init_std=0.0, corrupted_init_fraction=1.0)) == (ZeroInitGradient, True)


# -- invalid options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "flow",
            {"noise_samples_per_target": 0},
            "noise_samples_per_target must be at least 1, got 0",
        ),
        ("equilibrium", {"decay_width": 0.0}, "objective.decay_width must be in (0, 1], got 0.0"),
        ("equilibrium", {"decay_width": 1.5}, "objective.decay_width must be in (0, 1], got 1.5"),
        ("s1", {"steps": 0}, "objective.steps must be at least 1, got 0"),
        ("s1", {"step_size": 0.0}, "objective.step_size must be positive, got 0.0"),
        ("s1", {"init_std": -0.1}, "objective.init_std must be 0 or more, got -0.1"),
        ("s1", {"corrupted_init_fraction": 1.1}, "init_fraction must be in [0, 1], got 1.1"),
        (
            "s1",
            {"corrupted_init_fraction": -0.1},
            "init_fraction must be in [0, 1], got -0.1",
        ),
        ("s2", {"steps": (0, 2)}, "objective.steps must be an increasing range from 1 on, got (0"),
        ("s2", {"steps": (3, 2)}, "objective.steps must be an increasing range from 1 on, got (3"),
        ("s2", {"step_size": 0.0}, "objective.step_size must be positive, got 0.0"),
        ("s2", {"step_size_range": (0.0, 2.0)}, "step_size_range must be positive and increasing"),
        ("s2", {"step_size_range": (2.0, 0.5)}, "step_size_range must be positive and increasing"),
        ("s2", {"noise": (-0.1, 0.0)}, "objective.noise must be not negative, got (-0.1"),
        ("s2", {"momentum": 1.0}, "objective.momentum must be in [0, 1), got 1.0"),
        ("s2", {"momentum": -0.1}, "objective.momentum must be in [0, 1), got -0.1"),
        ("s2", {"replay": -1}, "objective.replay must be 0 or more rows, got -1"),
        ("s2", {"replay_fraction": 0.0}, "objective.replay_fraction must be positive, got 0.0"),
        ("ebt_policy", {"steps": (3, 2)}, "objective.steps must be an increasing range from 1 on"),
        ("ebt_policy", {"step_size": 0.0}, "objective.step_size must be positive, got 0.0"),
        ("ebt_policy", {"step_size_range": (0.0, 1.0)}, "step_size_range must be positive and"),
        ("ebt_policy", {"temperature": 0.0}, "objective.temperature must be positive, got 0.0"),
        ("ebt_policy", {"noise": (-0.1, 0.0)}, "objective.noise must be not negative, got (-0.1"),
        ("ebt_policy", {"momentum": 1.0}, "objective.momentum must be in [0, 1), got 1.0"),
        (
            "ebt_policy",
            {"normalization": "rms"},
            "released_code or none, got rms",
        ),
        ("contrastive", {"negatives": 0}, "objective.negatives must be at least 1, got 0"),
        ("contrastive", {"steps": -1}, "objective.steps must be 0 or more, got -1"),
        ("contrastive", {"step_size": 0.0}, "objective.step_size must be positive, got 0.0"),
        ("contrastive", {"noise": (0.1, -1.0)}, "objective.noise must be not negative, got (0.1"),
        ("contrastive", {"regularizer": -1.0}, "objective.regularizer must be 0 or more, got -1.0"),
    ],
)
def test_invalid_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        OBJECTIVES.get(name)(**options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flow", {"noise_samples_per_target": 1}),
        ("equilibrium", {"decay_width": 1.0}),
        ("s1", {"steps": 1, "init_std": 0.0, "corrupted_init_fraction": 1.0}),
        ("s2", {"steps": (1, 1), "step_size_range": (1.0, 1.0), "noise": (0.0, 0.0)}),
        ("ebt_policy", {"steps": (1, 1), "step_size_range": (1.0, 1.0), "momentum": 0.0}),
        ("contrastive", {"negatives": 1, "steps": 1, "noise": (0.0, 0.0), "regularizer": 0.0}),
    ],
)
def test_options_at_their_limits_are_accepted(name, options):
    y = torch.randn(4, 2, 3)
    objective = OBJECTIVES.get(name)(**options)
    energy = level_quadratic if objective.level_conditioned else quadratic()
    loss, _ = objective(energy, y, objective.sample_noise(y))
    assert loss.isfinite()


@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("spread", [0.3, 1.0, 2.5])
def test_flow_score_is_the_negative_log_likelihood(level, spread):
    # For targets N(mean, spread^2), the energy that flow matching learns has a closed form.
    mean = torch.tensor([0.7, -1.2, 0.1], dtype=torch.float64)

    def energy(x, level):
        g = level.unsqueeze(-1)
        variance = g**2 * spread**2 + (1 - g) ** 2
        curvature = (g * spread**2 - (1 - g)) / variance
        off = x - g * mean
        return -(x @ mean) - (curvature * off.square() / 2).sum(-1)

    candidates = torch.randn(2, 50, 3, dtype=torch.float64) * 2
    score = Flow().score(energy, candidates, level)
    variance = level**2 * spread**2 + (1 - level) ** 2
    expected = (level * (candidates - mean)).square().sum(-1) / (2 * variance)
    torch.testing.assert_close(score - score[0, 0], expected - expected[0, 0])


def test_score_without_levels_is_the_energy():
    x = torch.randn(2, 3, 4)
    for make in ("flow without level", "equilibrium", "s1", "s2", "contrastive", "ebt_policy"):
        energy = quadratic(2.0)
        assert torch.equal(SMALL_OBJECTIVES[make]().score(energy, x, 0.5), energy(x))


def test_step_conditioned_score_is_the_energy_at_the_last_step():
    x = torch.randn(2, 3, 4)
    objective = S1(steps=4, step_conditioned=True)
    score = objective.score(lambda x, level: x.sum(-1) * level, x, 0.5)
    torch.testing.assert_close(score, 0.75 * x.sum(-1))
