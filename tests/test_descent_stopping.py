"""When the refinement loop ends: early stop of units, and wall-clock deadlines.

Shapes: B batch, U units, N steps.
"""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import few, level_quadratic, normal, quadratic, slope, slow

from ebt_policy.energy import descend


@few
@given(ratio=st.floats(0.2, 0.9), seed=st.integers(0, 99))
def test_early_stop_stops_converged_units_only(ratio, seed):
    init = normal(3, 4, 2, seed=seed) * torch.logspace(-4, 1, 12).view(3, 4, 1)
    found = descend(quadratic(), init, steps=15, step_size=1 - ratio, stop_grad_norm=1e-2)
    kept = torch.tensor(ratio, dtype=torch.float64)  # of the distance, at each step
    norms = init.norm(dim=-1) * kept ** torch.arange(15).view(-1, 1, 1)
    want = (norms >= 1e-2).sum(0)
    assert torch.equal(found.steps_used, want)
    torch.testing.assert_close(found.candidate, init * (kept**want).unsqueeze(-1))
    assert len(found.path) == len(found.energies) == len(found.grad_norms) + 1


def test_the_loop_ends_when_all_have_stopped():
    found = descend(quadratic(), normal(2, 2, 1), steps=10**6, step_size=0.5, stop_grad_norm=1e-3)
    assert len(found.grad_norms) < 20 and (found.grad_norms[-1] < 1e-3).all()
    done = descend(quadratic(), torch.zeros(2, 2, 1), steps=9, step_size=0.5, stop_grad_norm=1e-3)
    assert (done.steps_used == 0).all() and (done.candidate == 0).all()
    assert not done.diverged.any()


def test_noise_does_not_move_a_unit_that_has_stopped():
    init = torch.tensor([[[1e-6], [100.0]]])
    found = descend(quadratic(), init, steps=30, step_size=0.1, stop_grad_norm=0.5, noise=0.05,
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    first = torch.stack(found.path)[:, 0, 0, 0]
    assert (first[1:] == first[1]).all() and found.steps_used[0].tolist()[0] == 0
    assert found.steps_used[0, 1] == 30


def turning(x, level):
    """Falls along (1, 1), except for units beyond 10: they turn with the level."""
    level = torch.zeros(x.shape[:2]) if level is None else level
    turn = torch.where(x.detach()[..., 0] > 10, level, torch.zeros_like(level))
    return -(x[..., 0] * (1 - turn) + x[..., 1] * (1 + turn))


@pytest.mark.parametrize("steps", [2, 4, 9])
def test_a_straight_path_is_landed_on_in_two_steps_and_a_bent_one_is_not(steps):
    init = torch.tensor([[[0.0, 0.0], [50.0, 0.0]]])
    options = {"steps": steps, "step_size": 1 / steps, "levels": torch.linspace(0, 1, steps + 1)}
    whole = descend(turning, init, **options)
    found = descend(turning, init, stop_change=0.1, **options)
    assert found.steps_used.tolist() == [[2, steps]]
    torch.testing.assert_close(found.candidate, whole.candidate)
    alone = descend(turning, init[:, :1], stop_change=0.1, **options)
    assert len(alone.path) == 3
    torch.testing.assert_close(alone.candidate, whole.candidate[:, :1])
    bold = descend(turning, init, stop_change=1.5, **options)  # 1.0 per unit of level is its bend
    assert bold.steps_used.tolist() == [[2, 2]]


def test_candidates_land_together():
    bent, straight = [50.0, 0.0], [0.0, 0.0]
    init = torch.tensor([[bent, straight, straight, straight]])
    options = {"steps": 4, "step_size": 0.25, "levels": torch.linspace(0, 1, 5), "candidates": 2}
    found = descend(turning, init, stop_change=0.1, **options)
    assert found.steps_used.tolist() == [[4, 2]]


def test_what_is_done_at_the_end_is_done_to_those_that_landed():
    told = []

    def project(x, done):
        told.append(done)
        return x

    descend(turning, torch.zeros(1, 1, 2), steps=5, step_size=0.2, stop_change=0.1,
            levels=torch.linspace(0, 1, 6), project=project)  # fmt: skip
    assert told == [1, 5]


class Clock:
    """Stands in for the wall clock: every evaluation of an energy takes what it is told."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def times(self, energy, costs):
        remaining = iter(costs)

        def timed(x, level=None):
            self.now += next(remaining)
            return energy(x, level)

        return timed


@pytest.mark.parametrize("final_energy", [True, False])
@pytest.mark.parametrize("with_levels", [True, False])
@pytest.mark.parametrize("budget", [3.5, 7.5, 20.5, 48.5])
def test_deadline_is_kept_and_used_up(monkeypatch, with_levels, final_energy, budget):
    clock, n = Clock(monkeypatch), 50
    found = descend(
        clock.times(slope, [1.0] * 60),
        torch.zeros(1, 2, 3),
        steps=n,
        step_size=0.1,
        levels=torch.linspace(0, 1, n + 1) if with_levels else None,
        deadline_s=budget,
        final_energy=final_energy,
    )
    assert budget - 1 <= clock.now - 100 <= budget
    used = int(budget) - final_energy
    assert (found.steps_used == used).all() and len(found.path) == used + 1
    reached = n if with_levels else used  # with levels the last step covers the rest of the path
    torch.testing.assert_close(found.candidate, torch.full((1, 2, 3), 0.1 * reached))


@few
@given(costs=st.lists(st.floats(0.5, 2), min_size=30, max_size=30), with_levels=st.booleans())
def test_deadline_is_overrun_by_no_more_than_the_surprise(costs, with_levels):
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock(monkeypatch)
        levels = torch.linspace(0, 1, 21) if with_levels else None
        descend(clock.times(slope, costs), torch.zeros(1, 1, 1), steps=20, step_size=0.1,
                levels=levels, deadline_s=10.0)  # fmt: skip
        # Three evaluations at most were judged by an earlier one, each by 1.5 too little at most.
        assert 5 < clock.now - 100 <= 10 + 3 * 1.5


@pytest.mark.parametrize("with_levels", [True, False])
def test_deadline_is_kept_on_the_real_clock(with_levels):
    n, cost, budget = 100, 0.02, 0.3
    levels = torch.linspace(0, 1, n + 1) if with_levels else None
    begun = time.perf_counter()
    found = descend(slow(slope, cost), torch.zeros(1, 1, 1), steps=n, step_size=0.1,
                    levels=levels, deadline_s=budget)  # fmt: skip
    assert time.perf_counter() - begun < 1.0  # a busy machine is late; all steps take two seconds
    assert 1 <= found.steps_used.item() <= budget / cost


@pytest.mark.parametrize("with_levels", [True, False])
def test_one_step_is_always_taken(with_levels):
    told = []

    def energy(x, level):
        told.append(None if level is None else level.flatten()[0].item())
        return slope(x)

    levels = torch.linspace(0, 1, 5) if with_levels else None
    found = descend(energy, torch.zeros(1, 1, 1), steps=4, step_size=0.25, levels=levels,
                    deadline_s=1e-9)  # fmt: skip
    assert found.steps_used.item() == 1
    assert found.candidate.item() == (1.0 if with_levels else 0.25)
    assert told == ([0.0, 1.0] if with_levels else [None, None])


def test_a_generous_deadline_changes_nothing():
    free = descend(quadratic(), normal(2, 2, 2), steps=5, step_size=0.1)
    timed = descend(quadratic(), normal(2, 2, 2), steps=5, step_size=0.1, deadline_s=60.0)
    assert torch.equal(free.candidate, timed.candidate)


def test_levels_are_told_before_each_step_and_at_the_end():
    init, levels = normal(2, 3, 4), torch.tensor([0.0, 0.5, 0.7, 1.0])
    found = descend(level_quadratic, init, steps=3, step_size=0.5, levels=levels)
    x = init
    for level in levels[:-1]:
        x = x - 0.5 * (x - level)
    torch.testing.assert_close(found.candidate, x)
    torch.testing.assert_close(found.energies[-1], (x - 1).square().sum(-1) / 2)
    by_unit = descend(level_quadratic, init, steps=3, step_size=0.5,
                      levels=levels.view(-1, 1, 1).expand(-1, 2, 3))  # fmt: skip
    assert torch.equal(by_unit.candidate, found.candidate)
