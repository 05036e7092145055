"""When the descent loop ends: early stopping of units, and wall-clock deadlines.

Shapes: B batch, U units, N steps.
"""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import descend, few_examples, level_quadratic, normal, quadratic, slope, slow

from ebt_policy.energy import (
    Descent,
    FirstOf,
    FixedSteps,
    GradientNorm,
    LangevinNoise,
    LevelSchedule,
    PathProjection,
    RejectIncreases,
    StopReason,
    StraightPath,
    select,
)


@few_examples
@given(ratio=st.floats(0.2, 0.9), seed=st.integers(0, 99))
def test_early_stop_stops_converged_units_only(ratio, seed):
    init = normal(3, 4, 2, seed=seed) * torch.logspace(-4, 1, 12).view(3, 4, 1)
    result = descend(quadratic(), init, 15, 1 - ratio, stop=GradientNorm(1e-2))
    shrinkage = torch.tensor(ratio, dtype=torch.float64)  # of the distance, per step
    norms = init.norm(dim=-1) * shrinkage ** torch.arange(15).view(-1, 1, 1)
    want = (norms >= 1e-2).sum(0)
    assert torch.equal(result.steps_used, want)
    stopped = result.reason == StopReason.GRADIENT_NORM
    assert torch.equal(stopped, want < 15)
    assert (result.reason[~stopped] == StopReason.STEPS_DONE).all()
    torch.testing.assert_close(result.candidate, init * (shrinkage**want).unsqueeze(-1))
    assert len(result.path) == len(result.energies) == len(result.grad_norms) + 1


def test_loop_ends_when_all_units_have_stopped():
    stop = GradientNorm(1e-3)
    result = descend(quadratic(), normal(2, 2, 1), 10**6, 0.5, stop=stop)
    assert len(result.grad_norms) < 20 and (result.grad_norms[-1] < 1e-3).all()
    done = descend(quadratic(), torch.zeros(2, 2, 1), 9, 0.5, stop=stop)
    assert (done.steps_used == 0).all() and (done.candidate == 0).all()
    assert not done.diverged.any()


def test_noise_does_not_move_a_unit_that_has_stopped():
    init = torch.tensor([[[1e-6], [100.0]]])
    result = descend(quadratic(), init, 30, 0.1, stop=GradientNorm(0.5), noise=LangevinNoise(0.05),
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    first = torch.stack(result.path)[:, 0, 0, 0]
    assert (first[1:] == first[1]).all() and result.steps_used[0].tolist()[0] == 0
    assert result.steps_used[0, 1] == 30


def turning_energy(x, level):
    """Return an energy that falls along (1, 1), or along a turning direction if x_0 > 10."""
    level = torch.zeros(x.shape[:2]) if level is None else level
    turn = torch.where(x.detach()[..., 0] > 10, level, torch.zeros_like(level))
    return -(x[..., 0] * (1 - turn) + x[..., 1] * (1 + turn))


@pytest.mark.parametrize("steps", [2, 4, 9])
def test_straight_path_exits_early_and_bent_path_does_not(steps):
    init = torch.tensor([[[0.0, 0.0], [50.0, 0.0]]])
    schedule = LevelSchedule.uniform(steps)
    early_exit = Descent(schedule, stop=StraightPath(0.1))
    full = Descent(schedule)(turning_energy, init)
    result = early_exit(turning_energy, init)
    assert result.steps_used.tolist() == [[2, steps]]
    assert result.reason.tolist() == [[StopReason.STRAIGHT_PATH, StopReason.STEPS_DONE]]
    torch.testing.assert_close(result.candidate, full.candidate)
    alone = early_exit(turning_energy, init[:, :1])
    assert len(alone.path) == 3
    torch.testing.assert_close(alone.candidate, full.candidate[:, :1])
    tolerant = Descent(schedule, stop=StraightPath(1.5))  # the path bends by 1.0 per level
    tolerated = tolerant(turning_energy, init)
    assert tolerated.steps_used.tolist() == [[2, 2]]


def test_candidates_of_one_unit_exit_together():
    bent, straight = [50.0, 0.0], [0.0, 0.0]
    init = torch.tensor([[bent, straight, straight, straight]])
    descent = Descent(LevelSchedule.uniform(4), stop=StraightPath(0.1, num_candidates=2))
    result = select(descent(turning_energy, init), 2)
    assert result.steps_used.tolist() == [[4, 2]]


def test_final_projection_applies_to_early_exited_units():
    calls = []

    def project(x):
        calls.append("on the way")
        return x

    def final(x):
        calls.append("final")
        return x

    constraints = (PathProjection(torch.zeros(1, 1, 2), project, final),)
    schedule = LevelSchedule.uniform(5)
    Descent(schedule, constraints=constraints, stop=StraightPath(0.1))(
        turning_energy, torch.zeros(1, 1, 2)
    )
    assert calls == ["on the way", "final"]


def test_unit_with_rising_energy_reverts_and_stops():
    def energy(x, level):  # the steps are too large for the second unit
        return (torch.tensor([1.0, 30.0]).view(1, 2, 1) * x.square() / 2).sum(-1)

    init = torch.ones(1, 2, 1)
    result = descend(energy, init, 4, 0.1, stop=RejectIncreases())
    assert result.candidate[0, 1].item() == 1.0 and result.steps_used.tolist() == [[4, 1]]
    torch.testing.assert_close(result.candidate[0, 0], torch.tensor([0.9**4]))
    assert (result.energies.diff(dim=0) <= 0).all()
    assert result.reason.tolist() == [[StopReason.STEPS_DONE, StopReason.ENERGY_INCREASE]]
    last = descend(energy, init, 1, 0.1, stop=RejectIncreases())  # only the final energy shows it
    assert last.candidate[0, 1].item() == 1.0
    assert last.reason.tolist() == [[StopReason.STEPS_DONE, StopReason.ENERGY_INCREASE]]


def test_unit_stops_by_the_first_rule_that_applies():
    def energy(x, level):
        return (torch.tensor([0.5, 1.0, 30.0]).view(1, 3, 1) * x.square() / 2).sum(-1)

    init = torch.tensor([[[1e-3], [1.0], [1.0]]])
    stop = FirstOf((RejectIncreases(), GradientNorm(1e-2)))
    result = descend(energy, init, 4, 0.1, stop=stop)
    reasons = [StopReason.GRADIENT_NORM, StopReason.STEPS_DONE, StopReason.ENERGY_INCREASE]
    assert result.reason.tolist() == [reasons]
    assert result.steps_used.tolist() == [[0, 4, 1]]


class Clock:
    """Test double of the wall clock, which only energy evaluations advance."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def times(self, energy, costs):
        """Return the same energy, whose evaluations take ``costs`` seconds, one after another."""
        remaining = iter(costs)

        def timed(x, level=None):
            self.now += next(remaining)
            return energy(x, level)

        return timed


def schedule(count, with_levels, size=0.1):
    levels = torch.linspace(0, 1, count + 1)
    return LevelSchedule(levels, size) if with_levels else FixedSteps(count, size)


@pytest.mark.parametrize("final_energy", [True, False])
@pytest.mark.parametrize("with_levels", [True, False])
@pytest.mark.parametrize("budget", [3.5, 7.5, 20.5, 48.5])
def test_deadline_is_met_and_fully_used(monkeypatch, with_levels, final_energy, budget):
    clock, n = Clock(monkeypatch), 50
    descent = Descent(schedule(n, with_levels), deadline_s=budget, final_energy=final_energy)
    result = descent(clock.times(slope, [1.0] * 60), torch.zeros(1, 2, 3))
    assert budget - 1 <= clock.now - 100 <= budget
    used = int(budget) - final_energy
    assert (result.steps_used == used).all() and len(result.path) == used + 1
    reached = n if with_levels else used  # with levels the last step covers the rest of the path
    torch.testing.assert_close(result.candidate, torch.full((1, 2, 3), 0.1 * reached))
    all_done = used == n
    assert (result.reason == (StopReason.STEPS_DONE if all_done else StopReason.DEADLINE)).all()


@few_examples
@given(costs=st.lists(st.floats(0.5, 2), min_size=30, max_size=30), with_levels=st.booleans())
def test_deadline_overrun_is_bounded(costs, with_levels):
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock(monkeypatch)
        descent = Descent(schedule(20, with_levels), deadline_s=10.0)
        descent(clock.times(slope, costs), torch.zeros(1, 1, 1))
        # At most three evaluations follow the last check, each at most 1.5 s slower than expected.
        assert 5 < clock.now - 100 <= 10 + 3 * 1.5


@pytest.mark.parametrize("with_levels", [True, False])
def test_deadline_is_met_on_the_wall_clock(with_levels):
    n, cost, budget = 100, 0.02, 0.3
    begun = time.perf_counter()
    descent = Descent(schedule(n, with_levels), deadline_s=budget)
    result = descent(slow(slope, cost), torch.zeros(1, 1, 1))
    assert time.perf_counter() - begun < 1.0  # allows for a busy machine; all steps take 2 s
    assert 1 <= result.steps_used.item() <= budget / cost


@pytest.mark.parametrize("with_levels", [True, False])
def test_one_step_is_always_taken(with_levels):
    levels = []

    def energy(x, level):
        levels.append(None if level is None else level.flatten()[0].item())
        return slope(x)

    descent = Descent(schedule(4, with_levels, 0.25), deadline_s=1e-9)
    result = descent(energy, torch.zeros(1, 1, 1))
    assert result.steps_used.item() == 1
    assert result.candidate.item() == (1.0 if with_levels else 0.25)
    assert levels == ([0.0, 1.0] if with_levels else [None, None])


def test_long_deadline_does_not_change_the_result():
    free = descend(quadratic(), normal(2, 2, 2), 5, 0.1)
    timed = descend(quadratic(), normal(2, 2, 2), 5, 0.1, deadline_s=60.0)
    assert torch.equal(free.candidate, timed.candidate)


def test_steps_use_each_level_and_the_final_energy_the_last():
    init, levels = normal(2, 3, 4), torch.tensor([0.0, 0.5, 0.7, 1.0])
    result = Descent(LevelSchedule(levels, 0.5))(level_quadratic, init)
    x = init
    for level in levels[:-1]:
        x = x - 0.5 * (x - level)
    torch.testing.assert_close(result.candidate, x)
    torch.testing.assert_close(result.energies[-1], (x - 1).square().sum(-1) / 2)
    per_unit = levels.view(-1, 1, 1).expand(-1, 2, 3)
    by_unit = Descent(LevelSchedule(per_unit, 0.5))(level_quadratic, init)
    assert torch.equal(by_unit.candidate, result.candidate)
