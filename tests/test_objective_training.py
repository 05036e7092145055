"""Training of a small energy network with each objective: modes, randomness, compilation.

Shapes: B batch, U units.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from landscapes import SMALL_OBJECTIVES
from torch import nn

from ebt_policy.energy import Objective, TwoStreamTransformer
from ebt_policy.energy.objectives import EBTPolicy
from ebt_policy.energy.two_stream import TransformerConfig


class TwoModes(nn.Module):
    """A model of targets (B, 1, 1, 2) with two modes given the context c: (+-0.8, c / 2).

    The mean of the targets, (0, c / 2), is never a target.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.objective = objective
        size = TransformerConfig(width=32, heads=2, layers=1)
        output = "mean" if isinstance(objective, EBTPolicy) else "energy"
        self.net = TwoStreamTransformer(
            1,
            1,
            2,
            1,
            size,
            output=output,
            level=objective.level_conditioned,
        )

    @staticmethod
    def batch(rows):
        context = torch.rand(rows, 1, 1) * 2 - 1
        side = torch.randint(0, 2, (rows, 1, 1)) * 1.6 - 0.8
        target = torch.cat([side, context / 2], dim=-1) + 0.03 * torch.randn(rows, 1, 2)
        return context, target.unsqueeze(2)

    def forward(self, context, target, noise):
        encoded = self.net.encode(context)
        return self.objective(lambda x, g: self.net(encoded, x, g), target, noise)

    def learn(self, updates):
        optimizer = torch.optim.Adam(self.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        losses = []
        for _ in range(updates):
            context, target = self.batch(128)
            loss, _ = self(context, target, self.objective.sample_noise(target))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def predict(self, context, steps):
        encoded = self.net.encode(context)
        start = torch.randn(len(context), 1, 1, 2)
        energy = lambda x, g: self.net(encoded, x, g)  # noqa: E731
        return self.objective.descent(steps)(energy, start).candidate[:, 0, 0]


# -- learning -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_OBJECTIVES)
def test_flow_learns_two_modes_and_regression_averages_them(name):
    problem = TwoModes(SMALL_OBJECTIVES[name]())
    losses = problem.learn(150)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    if name == "contrastive":  # a verifier, not a sampler: demonstrations get the lowest energy
        context, target = problem.batch(256)
        demonstration, noise = target, torch.randn(256, 4, 1, 2)
        with torch.no_grad():
            encoded = problem.net.encode(context)
            energy = problem.net(encoded, torch.cat([demonstration, noise], dim=1))
        assert (energy.argmin(dim=1) == 0).float().mean() > 0.7
        return
    context = torch.rand(256, 1, 1) * 2 - 1
    for steps in (8, 16):
        side, height = problem.predict(context, steps).unbind(-1)
        near_a_mode = ((side.abs() - 0.8).abs() < 0.3).float().mean()
        assert (height - context[:, 0, 0] / 2).abs().mean() < 0.2, "the context is used"
        if name in ("s1", "s2", "ebt_policy"):  # also with more steps
            assert near_a_mode < 0.05 and side.abs().mean() < 0.2
        else:
            assert near_a_mode > 0.7 and 0.3 < (side > 0).float().mean() < 0.7


# -- randomness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL_OBJECTIVES)
def test_noise_is_the_only_randomness_and_is_batch_first(name):
    problem = TwoModes(SMALL_OBJECTIVES[name]())
    context, target = problem.batch(6)
    noise = problem.objective.sample_noise(target)
    state = torch.get_rng_state()
    loss, _ = problem(context, target, noise)
    assert torch.equal(torch.get_rng_state(), state)
    again, _ = problem(context, target, noise)
    assert torch.equal(loss, again)
    other, _ = problem(context, target, problem.objective.sample_noise(target))
    assert not torch.equal(loss, other)

    # A batch can be split among processes: its loss is the mean of their losses.
    def part(rows):
        noise_part = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in noise.items()}
        return problem(context[rows], target[rows], noise_part)[0]

    halves = (part(slice(0, 3)) + part(slice(3, 6))) / 2
    torch.testing.assert_close(halves, loss, rtol=1e-5, atol=1e-6)


# -- compiled -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow", "s1", "s2", "contrastive", "ebt_policy"])
def test_compiled_loss_equals_eager(name):
    """Contrastive chains descend under no_grad inside the compiled part."""
    torch._dynamo.reset()
    problem = TwoModes(SMALL_OBJECTIVES[name]())
    context, target = problem.batch(8)
    noise = problem.objective.sample_noise(target)

    def run(function):
        problem.zero_grad()
        loss, metrics = function(context, target, noise)
        loss.backward()
        gradients = {k: p.grad.clone() for k, p in problem.named_parameters() if p.grad is not None}
        return loss.detach(), {k: v.detach() for k, v in metrics.items()}, gradients

    loss, metrics, gradients = run(problem)
    compiled = run(torch.compile(problem, fullgraph=True))  # a graph break is an error
    tolerance: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(compiled[0], loss, **tolerance)
    torch.testing.assert_close(compiled[1], metrics, **tolerance)
    torch.testing.assert_close(compiled[2], gradients, **tolerance)
    assert any(g.abs().max() > 1e-3 for g in gradients.values())


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_compiled_steps_serve_every_number_of_steps():
    torch._dynamo.reset()
    problem = TwoModes(EBTPolicy())
    objective = problem.objective
    assert isinstance(objective, EBTPolicy)
    context, target = problem.batch(8)

    def run(steps):
        torch.manual_seed(0)
        objective.steps = (steps, steps)
        problem.zero_grad()
        loss, _ = problem(context, target, objective.sample_noise(target))
        loss.backward()
        return loss.detach(), [p.grad for p in problem.parameters() if p.grad is not None]

    eager = [run(steps) for steps in (2, 3, 5)]
    assert objective.compile_steps()
    torch.testing.assert_close(run(2), eager[0], rtol=1e-4, atol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps, expected in zip((3, 5), eager[1:], strict=True):
            torch.testing.assert_close(run(steps), expected, rtol=1e-4, atol=1e-5)
