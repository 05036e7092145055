"""The published recipe of EBT-Policy: step sizes, normalisation and stopping."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from landscapes import quadratic

from ebt_policy.energy import GradientNorm
from ebt_policy.energy.objectives import EBTPolicy


def test_ebt_policy_step_is_scaled_by_the_energy():
    """Without momentum, noise and normalisation, one step has a closed form."""
    objective = EBTPolicy(step_size=2.0, temperature=4.0, momentum=0.0, normalization="none")
    x = torch.tensor([[[0.3, -0.2]], [[1.0, 0.5]]], dtype=torch.float64)
    result = objective.descent(1)(quadratic(), x)
    energy = x.square().sum(-1, keepdim=True) / 2
    torch.testing.assert_close(result.candidate, x - 2.0 / 4.0 * energy.exp() * x)


def test_ebt_policy_trains_the_energy_through_its_step_size():
    offset = torch.zeros((), requires_grad=True)  # it has no effect on the gradient of the energy
    objective = EBTPolicy(noise=(0.0, 0.0), steps=(1, 1))
    y = torch.randn(4, 1, 3)
    loss, _ = objective(lambda x, level: x.square().sum(-1) + offset, y, objective.sample_noise(y))
    assert float(torch.autograd.grad(loss, offset)[0]) != 0


@pytest.mark.parametrize("kind", ["sample", "last_step", "released_code", "none"])
def test_only_the_released_normalization_mixes_rows(kind):
    objective = EBTPolicy(step_size=0.5, normalization=kind)
    x = torch.randn(3, 2, 4, dtype=torch.float64) / 10
    descent = objective.descent(3)
    together, alone = descent(quadratic(), x), descent(quadratic(), x[:1])
    same = torch.allclose(together.candidate[:1], alone.candidate)
    assert same == (kind != "released_code")


def test_candidates_are_normalised_before_every_step_or_the_last():
    seen = []

    def energy(x, level=None):
        seen.append(float(x.detach().square().mean()))
        return x.sum(-1) * 0

    x = 3 * torch.ones(1, 1, 4)
    for kind, expected in (
        ("sample", [1, 1, 1]), ("last_step", [9, 9, 1]), ("released_code", [9, 9, 1]),
        ("none", [9, 9, 9]),
    ):  # fmt: skip
        seen.clear()
        EBTPolicy(normalization=kind).descent(3)(energy, x)
        assert seen[:3] == pytest.approx(expected, rel=1e-4), kind


def test_ebt_policy_stops_where_the_gradient_is_small():
    descent = EBTPolicy(step_size=4.0, momentum=0.0, normalization="none").descent(20)
    descent = replace(descent, stop=GradientNorm(1e-3))
    result = descent(quadratic(), torch.tensor([[[0.1]], [[0.0]]], dtype=torch.float64))
    assert 0 < int(result.steps_used[0]) < 20 and int(result.steps_used[1]) == 0


def test_a_stopped_candidate_is_the_one_after_its_last_step():
    """It must not stay normalised: the loss was on candidates after a step."""
    target = torch.tensor([0.9, 0.3, -0.2, 0.1], dtype=torch.float64)

    def energy(x, level=None):
        return (x - target).square().sum(-1) / 2

    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    descent = EBTPolicy(step_size=2.0, momentum=0.0).descent(40)
    result = replace(descent, stop=GradientNorm(1.1))(energy, x)
    path, used = torch.stack(result.path), result.steps_used
    assert (used > 0).any() and (used < 40).all()
    expected = path.gather(0, used.view(1, 2, 3, 1).expand(1, 2, 3, 4))[0]
    assert torch.equal(result.candidate, expected)
    root_mean_square = result.candidate.square().mean(-1).sqrt()
    assert (root_mean_square[used > 0] - 1).abs().min() > 0.01


@pytest.mark.parametrize("kind", ["sample", "last_step", "released_code", "none"])
def test_candidates_are_scored_as_the_energy_is_trained_on_them(kind):
    x = torch.tensor([[[3.0, 0.0]], [[0.0, 0.5]]])

    def energy(x, level=None):
        return x.square().mean(-1)

    score = EBTPolicy(normalization=kind).score(energy, x, 0.5).flatten().tolist()
    unit = {"none": [4.5, 0.125], "released_code": [1.946, 0.054]}.get(kind, [1.0, 1.0])
    assert score == pytest.approx(unit, abs=1e-3)
