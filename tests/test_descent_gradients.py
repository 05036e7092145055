"""Gradients through the descent loop, and equal results in every grad mode.

Shapes: B batch, U units, N steps.
"""

from __future__ import annotations

import pytest
import torch
from landscapes import MODES, descend, double_well, level_quadratic, normal

from ebt_policy.energy import (
    BilinearEnergy,
    Descent,
    DirectUpdate,
    FrozenEntries,
    LangevinNoise,
    LevelSchedule,
    MirrorMap,
    NesterovMomentum,
)
from ebt_policy.energy.gradients import energy_gradient
from ebt_policy.language.model import negative_entropy


def network(w1, w2):
    return lambda x, level: torch.tanh(x @ w1).square() @ w2 + 0.1 * x.square().sum(-1)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"update": NesterovMomentum(0.5)},
        {"noise": LangevinNoise(0.1, normal(2, 3, 2, 3, seed=3))},
        {"constraints": (FrozenEntries(torch.tensor([True, False, False])),)},
    ],
)
def test_gradients_through_all_steps_equal_finite_differences(extra):
    w1, w2 = normal(3, 4).requires_grad_(), normal(4, seed=1).requires_grad_()
    size = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    init = normal(2, 2, 3, seed=2).requires_grad_()

    def outcome(w1, w2, size, init):
        result = descend(network(w1, w2), init, 3, size, **extra)
        return result.candidate, result.energies

    assert torch.autograd.gradcheck(outcome, (w1, w2, size, init))


def test_gradients_reach_step_sizes_by_step_and_by_unit():
    w1, w2, init = normal(3, 4), normal(4, seed=1), normal(2, 2, 3, seed=2)
    for shape in [(3,), (2, 2)]:
        size = torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda a: descend(network(w1, w2), init, 3, a).candidate, (size,)
        )


def test_detached_steps_keep_the_gradient_of_the_last_step():
    w1, w2 = normal(3, 4).requires_grad_(), normal(4, seed=1).requires_grad_()
    init = normal(2, 2, 3, seed=2)
    detached = descend(network(w1, w2), init, 3, 0.3, graph="step")
    attached = descend(network(w1, w2), init, 3, 0.3)
    assert torch.equal(detached.candidate, attached.candidate)

    def gradient(x):
        gradients = torch.autograd.grad(x.square().sum(), (w1, w2), retain_graph=True)
        return torch.cat([g.flatten() for g in gradients])

    for k in (3, 2, 1):  # each has the gradient of one step from a constant
        before = detached.path[k - 1].detach()
        step = descend(network(w1, w2), before, 1, 0.3)
        torch.testing.assert_close(gradient(detached.path[k]), gradient(step.candidate))
    assert not torch.allclose(gradient(attached.candidate), gradient(detached.candidate))

    last = descend(network(w1, w2), init, 3, 0.3, graph="last_step")
    assert torch.equal(last.candidate, detached.candidate)
    torch.testing.assert_close(gradient(last.candidate), gradient(detached.candidate))
    assert not any(x.requires_grad for x in last.path[:-1])


@pytest.mark.parametrize("made_in", MODES)
@pytest.mark.parametrize("mode", MODES)
def test_results_do_not_depend_on_grad_mode(mode, made_in):
    with made_in():
        init, levels = normal(2, 3, 4), torch.linspace(0, 1, 4, dtype=torch.float64)
    update = NesterovMomentum(0.3)
    w = torch.ones((), dtype=torch.float64, requires_grad=True)

    def energy(x, level):
        return w * (level_quadratic(x, level) + double_well(x) * level)

    fresh = torch.linspace(0, 1, 4, dtype=torch.float64)
    want = Descent(LevelSchedule(fresh, 0.2), update=update)(energy, normal(2, 3, 4))
    with mode():
        result = Descent(LevelSchedule(levels, 0.2), update=update)(energy, init)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert torch.equal(result.candidate, want.candidate)
    assert torch.equal(result.energies, want.energies)
    assert result.candidate.requires_grad == (mode is torch.enable_grad)
    assert not result.candidate.is_inference()


@pytest.mark.parametrize("grad", [True, False])
def test_bilinear_energy_at_zero_needs_no_backward_pass(grad):
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    ).double()
    energy, x = BilinearEnergy(lambda x, level: net(x)), torch.zeros(2, 4, 3, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        short, value = energy_gradient(energy, x, zero=True)
        slope, want = energy_gradient(energy, x)
    torch.testing.assert_close(short, slope)
    torch.testing.assert_close(value, want)
    if grad:  # training differentiates the loss through this gradient
        actual, expected = (
            torch.autograd.grad(g.square().sum(), list(net.parameters()), retain_graph=True)
            for g in (short, slope)
        )
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_direct_update_follows_its_field():
    field = lambda x, level: 0.5 * (1 - x)  # noqa: E731
    result = descend(DirectUpdate(field), torch.zeros(1, 2, 3), 3, 1.0)
    torch.testing.assert_close(result.candidate, torch.full((1, 2, 3), 0.875))
    assert not result.energies.any()


def test_mirror_descent_reaches_the_gibbs_distribution():
    """The gradient of <cost, p> - H(p) in the distribution p moves the logits towards -cost."""
    cost = torch.tensor([0.3, -0.2, 0.9])
    mirror = MirrorMap(lambda x: x.softmax(-1), lambda slope: slope, negative_entropy)
    energy = lambda p, level: (p * cost).sum(-1)  # noqa: E731
    result = descend(energy, torch.zeros(1, 1, 3), 4, 0.5, mirror=mirror)
    want = (-(1 - 0.5**4) * cost).softmax(-1)
    torch.testing.assert_close(result.candidate.softmax(-1)[0, 0], want)
    free = (want * cost).sum() + (want * want.log()).sum()
    torch.testing.assert_close(result.energies[-1, 0, 0], free)
    assert result.energies[-1] >= -(-cost).logsumexp(0)  # the minimum of the free energy
