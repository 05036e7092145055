"""Costs of chunks: known optima, the selection rules, every policy, and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import few_examples
from tiny_policies import ENERGIES, HIGH, LOW, build, generators, observe

from ebt_policy.envs.push_t_geometry import observation
from ebt_policy.errors import ConfigError
from ebt_policy.policies import (
    ChunkConstraints,
    CostError,
    KeepIn,
    KeepOut,
    MaxTravel,
    Nudge,
    Smoothness,
    Waypoint,
    load_policy,
)
from ebt_policy.policies.candidates import choose
from ebt_policy.policies.costs import COSTS, build_costs, interpolate

SUPPORTED = [*ENERGIES, "diffusion", "diffusion ddim", "unet", "flow_matching"]
CENTER = (LOW + HIGH) / 2
PUSH_T_START = torch.from_numpy(observation(np.array([120.0, 400.0, 256.0, 256.0, 2.0])))
PUSH_T_START = PUSH_T_START.float().expand(1, 2, 20)


def cost_of(chunk):
    assert chunk.cost is not None
    return chunk.cost


def energy_of(chunk):
    assert chunk.energy is not None
    return chunk.energy


# -- the costs --------------------------------------------------------------------------------


def chunk(*positions):
    return torch.tensor(positions, dtype=torch.float32)[None, None]


def test_known_costs():
    straight = chunk([0, 0], [4, 0], [8, 0])
    assert float(KeepOut([0, 3], 2)(straight, {})) == 0
    assert float(KeepOut([0, 3], 2, margin=2, points=1)(straight, {})) == pytest.approx(1)
    assert float(KeepIn([-1, -1], [6, 1])(straight, {})) == pytest.approx(4, rel=1e-4)
    assert float(KeepIn([-1, -1], [6, 1], softness=2)(straight, {})) == pytest.approx(1, rel=1e-4)
    assert float(Waypoint([4, 3])(straight, {})) == pytest.approx(9)
    assert float(Waypoint([4, 3], tolerance=1, softness=2)(straight, {})) == pytest.approx(1)
    assert float(Waypoint([4, 3], step=2)(straight, {})) == pytest.approx(25)
    assert float(MaxTravel(3)(straight, {})) == pytest.approx(2)
    assert float(MaxTravel(4)(straight, {})) == pytest.approx(0, abs=1e-6)
    assert float(Nudge([0, 2], step=2)(straight, {})) == pytest.approx(4)
    assert float(Nudge([6, 0], step=2)(straight, {})) == 0
    corner = chunk([0, 0], [1, 0], [2, 0], [3, 2])
    assert float(Smoothness(softness=0.5)(corner, {})) == pytest.approx(16)
    assert float(Smoothness(dims=[0])(corner, {})) == 0


def test_the_path_between_actions_counts():
    jump = chunk([-10, 0], [10, 0])
    assert float(KeepOut([0, 0], 3, points=1)(jump, {})) == 0
    assert float(KeepOut([0, 0], 3, points=4)(jump, {})) > 0
    middle = interpolate(torch.tensor([[0.0, 0], [4, 8], [4, 0]]), 4)
    assert middle.shape == (9, 2) and middle[2].tolist() == [2, 4] and middle[4].tolist() == [4, 8]


def test_gradients_are_finite_where_distances_are_zero():
    points = chunk([1, 1], [1, 1], [1, 1], [1, 1])
    costs = [
        KeepOut([1, 1], 2), KeepIn([2, 2], [3, 3]), KeepIn([0, 0], [1, 1]), Waypoint([1, 1]),
        MaxTravel(1), Nudge([1, 0], step=3), Smoothness(),
    ]  # fmt: skip
    for cost in costs:
        x = points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cost(x, {}).sum(), x)
        assert gradient.isfinite().all(), type(cost).__name__


def test_costs_are_built_from_configuration():
    section = [
        {"name": "keep_out", "center": [1, 2], "radius": 3, "softness": 0.5},
        {"name": "max_travel", "distance": 4.0, "dims": [0]},
    ]
    first, second = build_costs(section, "robot.costs")
    assert isinstance(first, KeepOut) and first.center.tolist() == [1, 2] and first.softness == 0.5
    assert isinstance(second, MaxTravel) and second.dims == [0]
    assert set(COSTS) == {
        "keep_out", "keep_in", "waypoint", "max_travel", "smoothness", "nudge", "arm_clearance",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "keepout"}, "Did you mean keep_out"),
        ({"radius": 3}, r"robot.costs\[0\] needs the option name, one of"),
        ({"name": "keep_out", "radius": 3}, r"robot.costs\[0\] needs the option center"),
        ({"name": "keep_out", "center": [1, 2], "radius": 0}, "radius must be positive"),
        ({"name": "keep_out", "center": [1], "radius": 1}, "center must have 2 finite numbers"),
        ({"name": "keep_out", "center": ["a", 2], "radius": 1}, "center must be a list of a num"),
        ({"name": "keep_in", "low": [0, 0], "high": [0, 1]}, "must be below"),
        ({"name": "keep_in", "low": [0, 0], "high": [1, 1], "margin": 0.5}, "must be below"),
        ({"name": "waypoint", "position": [1, 2], "softness": 0}, "softness must be positive"),
        ({"name": "nudge", "offset": [0, 0]}, "must not be zero"),
        ({"name": "nudge", "offset": [0, 0, 1]}, "offset must have 2 finite numbers"),
        ({"name": "waypoint", "position": [1, math.nan]}, "position must have 2 finite numbers"),
        ({"name": "max_travel", "distance": -1}, "distance must be positive"),
    ],
)
def test_wrong_options_of_costs(entry, message):
    with pytest.raises(ConfigError, match=message):
        build_costs([entry], "robot.costs")


# -- selection --------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from([None, 0.0, 0.5, 2.0]), st.booleans())
@few_examples
def test_selection_follows_its_rule(seed, budget, in_nats):
    random = np.random.default_rng(seed)
    score = random.normal(size=(3, 6))
    cost = random.choice([0.0, 0.4, 1.0], size=(3, 6))
    index = choose(torch.tensor(score), torch.tensor(cost), budget, in_nats=in_nats)
    for row, chosen in enumerate(index.tolist()):
        candidates = range(6)
        if budget is not None:
            limit = score[row].min() + budget
            candidates = [i for i in candidates if score[row, i] <= limit]
        if budget is None and in_nats:
            expected = min(candidates, key=lambda i: score[row, i] + cost[row, i])
        else:
            expected = min(candidates, key=lambda i: (cost[row, i], score[row, i]))
        assert chosen == expected


def far_from_center(chunks, obs):
    """A cost in NumPy, which has no gradient."""
    distance = np.linalg.norm(chunks.numpy() - CENTER.numpy(), axis=-1)
    return torch.from_numpy((distance.mean(-1) / 100).astype(np.float32))


@pytest.mark.parametrize("kind", SUPPORTED)
def test_costs_without_gradient_select(kind):
    policy, obs = build(kind), observe(2)
    policy.configure_inference(num_candidates=6, select="first")
    first = policy.predict_chunk(obs, generator=generators(0, 1))
    chosen = policy.predict_chunk(
        obs, constraints=ChunkConstraints(costs=[far_from_center]), generator=generators(0, 1)
    )
    before = far_from_center(first.actions[:, None, 1:], obs)[:, 0]
    after = far_from_center(chosen.actions[:, None, 1:], obs)[:, 0]
    assert (after <= before + 1e-6).all() and (after < before).any()
    torch.testing.assert_close(chosen.cost, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_costs_with_gradient_move_candidates(kind):
    policy, obs = build(kind), observe(2)
    policy.configure_inference(num_candidates=1)
    free = policy.predict_chunk(obs, generator=generators(0, 1))
    cost = Waypoint(CENTER.tolist(), step=7, softness=20)
    moved = policy.predict_chunk(
        obs, constraints=ChunkConstraints(costs=[cost]), generator=generators(0, 1)
    )
    before = cost(free.actions[:, None, 1:], obs)[:, 0]
    assert (cost_of(moved) < 0.9 * before).all()


def test_a_trained_policy_moves_around_a_region():
    policy, obs = load_policy("pretrained:push_t"), {"obs": PUSH_T_START}
    policy.configure_inference(num_candidates=1)
    free = policy.predict_chunk(obs, generator=generators(0))
    center = free.actions[0, 6] + torch.tensor([5.0, 5.0])
    cost = KeepOut(center.tolist(), 30)
    around = policy.predict_chunk(
        obs, constraints=ChunkConstraints(costs=[cost]), generator=generators(0)
    )
    before = float(cost(free.actions[:, None, 1:], obs))
    assert before > 500 and float(cost_of(around)) < 0.05 * before
    # Without costs, the policy is the same as before, to the last bit.
    again = policy.predict_chunk(obs, generator=generators(0))
    assert torch.equal(again.actions, free.actions)


@pytest.mark.parametrize("kind", ["flow", "flow_matching"])
def test_prefix_and_limits_hold_with_costs(kind):
    policy, obs = build(kind), observe(2)
    prefix = CENTER.expand(2, 3, 2)
    low, high = LOW + (HIGH - LOW) * 0.4, LOW + (HIGH - LOW) * 0.6
    constraints = ChunkConstraints(
        prefix=prefix,
        project=lambda x: x.clamp(low, high),
        costs=[KeepOut(CENTER.tolist(), 500)],
    )
    actions = policy.predict_chunk(obs, constraints=constraints).actions
    assert torch.equal(actions[:, :3], prefix)
    assert (actions >= low - 1e-3).all() and (actions <= high + 1e-3).all()


def test_a_budget_limits_the_likelihood_that_a_cost_may_take():
    policy, obs = build("flow"), observe(1)
    policy.configure_inference(num_candidates=8)

    def predict(budget):
        constraints = ChunkConstraints(costs=[far_from_center], budget_nats=budget)
        return policy.predict_chunk(obs, constraints=constraints, generator=generators(0))

    free = policy.predict_chunk(obs, generator=generators(0))
    torch.testing.assert_close(predict(0.0).actions, free.actions)
    chunks = [predict(budget) for budget in (0.0, 0.5, 5.0, 1e9)]
    costs = [float(cost_of(chunk)) for chunk in chunks]
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]
    for budget, chunk in zip((0.0, 0.5, 5.0), chunks, strict=False):
        assert float(energy_of(chunk)) <= float(energy_of(free)) + budget + 1e-5
    policy.configure_inference(select="medoid")
    with pytest.raises(ConfigError, match=r"budget_nats needs inference.select=energy"):
        predict(1.0)


@pytest.mark.parametrize("kind", ["flow", "flow_matching"])
def test_candidates_are_sampled_until_a_cost_is_met(kind):
    policy, obs = build(kind), observe(1)
    policy.configure_inference(num_candidates=2)
    calls = []

    def met_in_the_third_round(chunks, obs):
        calls.append(chunks.shape[1])
        return torch.full(chunks.shape[:2], 0.0 if len(calls) == 3 else 1.0)

    for rounds, expected in ((10, [2, 2, 2]), (2, [2, 2])):
        calls.clear()
        constraints = ChunkConstraints(costs=[met_in_the_third_round], max_rounds=rounds)
        chunk = policy.predict_chunk(obs, constraints=constraints, generator=generators(0))
        assert calls == expected
        assert float(cost_of(chunk)) == (0.0 if rounds == 10 else 1.0)
    calls.clear()
    late = ChunkConstraints(costs=[met_in_the_third_round], max_rounds=10, deadline_s=1e-6)
    policy.predict_chunk(obs, constraints=late)
    assert calls == [2]


# -- errors -----------------------------------------------------------------------------------


def raising(chunks, obs):
    raise KeyError("no obstacle")


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (raising, "the cost raising failed .KeyError: 'no obstacle'"),
        (lambda x, obs: torch.full(x.shape[:2], math.nan), "at least 0, got nan"),
        (lambda x, obs: torch.full(x.shape[:2], math.inf), "at least 0, got inf"),
        (lambda x, obs: torch.full(x.shape[:2], -0.5), "at least 0, got -0.5"),
        (lambda x, obs: torch.zeros(len(x)), r"for each chunk, \(2, 1\); it returned the shape"),
        (lambda x, obs: "low", "failed"),
    ],
)
@pytest.mark.parametrize("kind", ["flow", "flow_matching"])
def test_wrong_costs_are_one_clear_error(kind, cost, message, monkeypatch):
    policy = build(kind)
    policy.configure_inference(num_candidates=1)
    with pytest.raises(CostError, match=message):
        policy.predict_chunk(observe(2), constraints=ChunkConstraints(costs=[cost]))

    def marked(chunks, obs):
        return cost(chunks, obs)

    marked.differentiable = True
    # A differentiable cost is a part of the prediction, so its error comes before.
    monkeypatch.setattr(policy, "encode_observation", None)
    with pytest.raises(CostError):
        policy.predict_chunk(observe(2), constraints=ChunkConstraints(costs=[marked]))


def test_a_cost_without_gradient_must_not_be_marked_as_differentiable():
    def marked(chunks, obs):
        return far_from_center(chunks.detach(), obs)

    marked.differentiable = True
    with pytest.raises(CostError, match="marked is marked as differentiable, but has no gradient"):
        build("flow").predict_chunk(observe(1), constraints=ChunkConstraints(costs=[marked]))


def test_costs_in_double_precision_are_accepted():
    def cost(chunks, obs):
        return chunks.double().square().sum((-2, -1)) * 1e-9

    cost.differentiable = True
    chunk = build("flow").predict_chunk(observe(1), constraints=ChunkConstraints(costs=[cost]))
    assert chunk.actions.dtype == torch.float32


@pytest.mark.parametrize("cost", [Waypoint([1, 2], step=40), Nudge([1, 0], step=40)])
def test_steps_beyond_the_chunk_are_errors(cost):
    with pytest.raises(CostError, match=r"failed .IndexError"):
        build("flow").predict_chunk(observe(1), constraints=ChunkConstraints(costs=[cost]))


@pytest.mark.parametrize("kind", ["bc", "ibc"])
def test_policies_without_candidates_refuse_costs(kind):
    constraints = ChunkConstraints(costs=[Waypoint([1, 2])])
    with pytest.raises(ConfigError, match=f"model={kind} does not support costs"):
        build(kind).predict_chunk(observe(1), constraints=constraints)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_nats": 1.0}, "need costs"),
        ({"max_rounds": 2}, "need costs"),
        ({"max_rounds": 0}, "max_rounds must be at least 1"),
        ({"costs": [raising], "budget_nats": -1.0}, "must not be negative"),
        ({"costs": [raising], "budget_nats": math.nan}, "must not be negative"),
    ],
)
def test_wrong_options_of_constraints(options, message):
    with pytest.raises(ValueError, match=message):
        ChunkConstraints(**options)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_costs_give_the_same_chunks_without_recompilation():
    torch._dynamo.reset()
    policy, obs = build("flow"), observe(1)
    policy.configure_inference(num_candidates=2)
    costs = [KeepOut(CENTER.tolist(), 60), KeepIn(LOW.tolist(), HIGH.tolist(), margin=5)]

    def predict():
        constraints = ChunkConstraints(costs=costs)
        return policy.predict_chunk(obs, constraints=constraints, generator=generators(0))

    eager = [predict()]
    costs[0].center = costs[0].center + 30
    eager.append(predict())
    policy.compile_prediction()
    costs[0].center = costs[0].center - 30
    torch.testing.assert_close(predict().actions, eager[0].actions, atol=0.02, rtol=1e-4)
    costs[0].center = costs[0].center + 30  # a moved obstacle
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(predict().actions, eager[1].actions, atol=0.02, rtol=1e-4)
