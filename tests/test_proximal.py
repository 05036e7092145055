"""Costs in a descent: known optima of energy and cost."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import few_examples, normal, quadratic

from ebt_policy.energy import CostStep, Descent, FixedSteps, GradientNorm, LevelSchedule
from ebt_policy.energy.proximal import end_variance, proximal_point


def squared_distance(weight, target):
    return lambda x: weight * (x - target).square().flatten(2).sum(-1) / 2


def test_descent_reaches_the_minimum_of_energy_and_cost():
    descent = Descent(FixedSteps(60, 0.3), constraints=(CostStep(squared_distance(4.0, 1.5)),))
    result = descent(quadratic(centre=-1.0), normal(2, 3, 2))
    expected = torch.full_like(result.candidate, (-1 + 4 * 1.5) / 5)
    torch.testing.assert_close(result.candidate, expected, atol=1e-6, rtol=0)


def test_descent_ends_at_the_edge_of_a_region():
    def inside(x):
        return 1e4 * (1 - x.norm(dim=-1)).clamp(min=0).square()

    init = torch.tensor([[[0.9, 1.2]]], dtype=torch.float64)
    descent = Descent(FixedSteps(200, 0.3), constraints=(CostStep(inside),))
    result = descent(quadratic(centre=torch.tensor([0.3, 0.0])), init)
    nearest = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(result.candidate, nearest, atol=2e-2, rtol=0)


@pytest.mark.parametrize("steps", [2, 100])
def test_costs_along_levels_sample_the_product_of_normal_data_and_cost(steps):
    """Normal data times exp(-w (y - a)^2 / 2) is normal with mean w a / (1 + w)."""

    def energy(x, level):  # The velocity of normal data is (2 g - 1) x / (g^2 + (1 - g)^2).
        scale = (2 * level - 1) / (level.square() + (1 - level).square())
        return -scale * x.square().sum(-1) / 2

    weight, target = 4.0, 1.5
    cost = CostStep(squared_distance(weight, target))
    result = Descent(LevelSchedule.uniform(steps), constraints=(cost,))(energy, normal(1, 20000, 1))
    assert float(result.candidate.mean()) == pytest.approx(weight * target / (1 + weight), abs=0.02)
    if steps == 100:  # a few Euler steps sample too narrow a distribution, with or without costs
        deviation = float(result.candidate.std())
        assert deviation == pytest.approx(math.sqrt(1 / (1 + weight)), abs=0.01)


def test_stopped_candidates_are_not_moved():
    descent = Descent(
        FixedSteps(5, 0.1),
        constraints=(CostStep(squared_distance(1.0, 9.0)),),
        stop=GradientNorm(1e-3),
    )
    result = descent(quadratic(), torch.zeros(1, 1, 2, dtype=torch.float64))
    assert not result.candidate.any() and int(result.steps_used) == 0


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(0.01, 10))
@few_examples
def test_a_proximal_point_is_never_worse_than_its_start(seed, weight, variance):
    def cost(z):
        return weight * (1 - z.norm(dim=-1)).clamp(min=0) + (z[..., 0] * weight).sin() + 1

    y = normal(2, 3, 2, seed=seed)
    z = proximal_point(cost, y, torch.tensor(variance, dtype=torch.float64))
    objective = cost(z) + (z - y).square().sum(-1) / (2 * variance)
    assert (objective <= cost(y) + 1e-12).all()


def test_a_candidate_without_noise_does_not_move():
    assert float(end_variance(torch.tensor(1.0))) == 0
