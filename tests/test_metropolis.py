"""Metropolis-adjusted Langevin steps at a level."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_policies import build, generators, observe

from ebt_policy.energy import Descent, FixedSteps, LevelSchedule, MetropolisLangevin
from ebt_policy.errors import ConfigError


def normal_flow(mean, variance):
    """Return the flow energy of normal data with this mean and variance."""

    def energy(x, level):
        g = level.unsqueeze(-1)
        slope = (g * variance - (1 - g)) / (g**2 * variance + (1 - g) ** 2)
        return -(mean * x + slope * (x - g * mean).square() / 2).sum(-1)

    return energy


def test_metropolis_steps_keep_the_variance_of_a_normal_density():
    level = torch.tensor(0.6)
    expected = math.sqrt(0.6**2 * 0.25 + 0.4**2)
    energy = normal_flow(0.0, 0.25)
    generator = torch.Generator().manual_seed(0)
    start = expected * torch.randn(1, 20000, 2, generator=generator)
    for size in (0.05, 1.0):
        x = MetropolisLangevin(30, size)(energy, start, level, generator)
        assert float(x.std()) == pytest.approx(expected, rel=0.02), size
        assert not torch.equal(x, start)
    wide = MetropolisLangevin(300, 0.3)(energy, 6 * start, level, generator)
    assert float(wide.std()) == pytest.approx(expected, rel=0.03)


def test_metropolis_steps_correct_the_product_of_noisy_densities():
    """The geometric mean of N(-1, 1) and N(1, 1/4) is N(0.6, 1 / 2.5)."""
    first, second = normal_flow(-1.0, 1.0), normal_flow(1.0, 0.25)

    def mean_of_product(corrector):
        descent = Descent(LevelSchedule.uniform(30), corrector=corrector)
        init = torch.randn(1, 5000, 1, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            result = descent(lambda x, g: (first(x, g) + second(x, g)) / 2, init)
        return float(result.candidate.mean())

    plain, corrected = mean_of_product(None), mean_of_product(MetropolisLangevin(10, 0.3))
    assert abs(plain - 0.6) > 0.3 and abs(corrected - 0.6) < 0.1


def test_metropolis_steps_of_a_policy():
    policy, obs = build("flow"), observe(2)
    plain = policy.predict_chunk(obs, generator=generators(0, 1)).actions
    policy.configure_inference(metropolis_steps=2)
    chunks = [policy.predict_chunk(obs, generator=generators(0, 1)).actions for _ in range(2)]
    assert torch.equal(*chunks) and not torch.equal(chunks[0], plain)
    alone = {key: value[:1] for key, value in obs.items()}  # a row does not depend on the others
    single = policy.predict_chunk(alone, generator=generators(0)).actions
    torch.testing.assert_close(single, chunks[0][:1], atol=0.02, rtol=1e-4)
    for options in ({"metropolis_steps": -1}, {"metropolis_steps": 0.5}):
        with pytest.raises(ConfigError, match="metropolis_steps"):
            policy.configure_inference(**options)
    with pytest.raises(ConfigError, match="metropolis_steps needs a level-conditioned"):
        build("equilibrium").configure_inference(metropolis_steps=1)
    with pytest.raises(ValueError, match="a corrector needs a LevelSchedule"):
        Descent(FixedSteps(2, 0.1), corrector=MetropolisLangevin(1))
    with pytest.raises(ValueError, match="count and size must be positive"):
        MetropolisLangevin(0)
