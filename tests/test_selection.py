"""Selection of one of several candidates: the rules, and their use in policies and descents."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TINY, compose_config
from hypothesis import given
from hypothesis import strategies as st
from landscapes import descend, double_well, few_examples, normal, quadratic
from torch import Tensor

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.energy import select
from ebt_policy.energy.selection import best_of, line_integral, vote
from ebt_policy.errors import ConfigError
from ebt_policy.policies import build_policy
from ebt_policy.policies.chunk_constraints import ChunkConstraints

SHAPE = {"obs_dim": 3, "action_dim": 2, "horizon": 16, "n_obs_steps": 2, "n_action_steps": 8}
MODELS = {
    "flow": ("model=flow_matching",),
    "ddim": ("model=diffusion", "model.inference.scheduler=ddim", "model.inference.steps=4"),
    "ddpm": ("model=diffusion", "model.inference.steps=4"),
    "epsilon": ("model=diffusion", "model.prediction=epsilon", "model.inference.steps=4"),
    "unet": ("model=diffusion", "model.network=unet", "model.inference.steps=4"),
    "energy": ("model=ebt",),
}


def build(*overrides: str):
    torch.manual_seed(0)
    data = {"obs": torch.randn(50, 3), "action": torch.randn(50, 2)}
    policy = build_policy(
        {**compose_config(*TINY, *overrides), "shape": SHAPE}, Normalizer.fit(data)
    )
    with torch.no_grad():  # new networks output zeros
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy.eval()


def test_lowest_score_of_each_unit_is_selected():
    score = torch.tensor([[3.0, 1.0, 2.0, 0.0, 5.0, 4.0]])
    assert best_of(score, 3).tolist() == [[1, 3]]
    assert best_of(score, 1).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_medoid_is_nearest_to_all_others():
    x = torch.tensor([[0.0, 4.0, 5.0, 6.0, 100.0]]).view(1, 5, 1)
    assert best_of(vote("medoid", x, 5), 5).item() == 2
    two_units = torch.cat([x, x.flip(1)], dim=1)
    assert best_of(vote("medoid", two_units, 5), 5).tolist() == [[2, 7]]


def test_density_selects_the_cluster_and_the_medoid_the_middle():
    """The candidates are a cluster, scattered ones on the other side, and one in the middle."""
    x = torch.tensor([-10.2, -10.1, -9.9, -10.0, 0.0, 8.0, 9.0, 11.0, 12.0]).view(1, 9, 1)
    assert vote("density", x, 9).argmin() < 4
    assert x.flatten()[vote("medoid", x, 9).argmin()] == 0.0


def test_density_kernel_width_is_a_quarter_of_the_median_distance():
    x = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    flat = x.flatten(2)
    for row, score in zip(flat, vote("density", x, 5), strict=True):
        distance = torch.cdist(row, row)
        pairs = distance[~torch.eye(5, dtype=torch.bool)].sort().values
        width = 0.25 * pairs[(len(pairs) - 1) // 2]
        density = (-distance.square() / (2 * width**2)).exp().sum(1)
        torch.testing.assert_close(score, -density.log())


@pytest.mark.parametrize("rule", ["medoid", "density", "first"])
def test_equal_candidates_cause_no_division_by_zero(rule):
    score = vote(rule, torch.ones(2, 4, 3), 4)
    assert score.isfinite().all()


def test_first_rule_selects_the_first_candidate():
    assert best_of(vote("first", torch.randn(3, 8, 2), 4), 4).tolist() == [[0, 4]] * 3


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="one of medoid, density, first, got 'best'"):
        vote("best", torch.randn(1, 2, 3), 2)


def test_line_integral_of_a_gradient_is_the_potential_difference():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, dtype=torch.float64)

    def potential(x: Tensor) -> Tensor:
        return (x.pow(4).sum(-1) + (x[..., 0] * x[..., 1])).squeeze(-1)

    def field(points: Tensor) -> Tensor:
        points = points.detach().requires_grad_()
        return torch.autograd.grad(potential(points).sum(), points)[0]

    integral = line_integral(field, x, 3)
    mean = x.unflatten(1, (2, 3)).mean(2).repeat_interleave(3, dim=1)
    torch.testing.assert_close(integral, potential(x) - potential(mean))


class Gaussian(torch.nn.Module):
    """The optimal network for normal actions of mean 1 and standard deviation 0.5.

    Args:
        policy: policy whose noise levels it uses.
        target: prediction target, "velocity", "v" or "noise".
    """

    def __init__(self, policy, target: str) -> None:
        super().__init__()
        self.target, self.schedule = target, getattr(policy, "train_schedule", None)

    def encode(self, obs: Tensor) -> Tensor:
        return obs

    def forward(self, context: Tensor, x: Tensor, level: Tensor) -> Tensor:
        if self.schedule is None:
            a, s = level, 1 - level
        else:
            abar = self.schedule.alphas_cumprod[((1 - level) * 100).round().long()]
            a, s = abar.sqrt(), (1 - abar).sqrt()
        a, s = a[..., None, None], s[..., None, None]
        variance = a**2 * 0.25 + s**2
        noise = s * (x - a) / variance  # E[n | x] and E[y | x] of jointly normal x, n and y
        clean = 1 + a * 0.25 * (x - a) / variance
        return {"velocity": clean - noise, "v": a * noise - s * clean, "noise": noise}[self.target]


@pytest.mark.parametrize(
    ("model", "target"), [("flow", "velocity"), ("ddim", "v"), ("epsilon", "noise")]
)
def test_score_field_is_the_gradient_of_the_blurred_likelihood(model, target):
    policy = build(*MODELS[model])
    policy.net = Gaussian(policy, target)
    chunks = torch.randn(2, 3, 16, 2)
    field = policy.score_field(None, chunks, 0.5)
    # At x = a y + s n with a = s, the data are blurred by normal noise of deviation s / a = 1.
    expected = (chunks - 1) / (0.25 + 1)
    tolerance = 0.05 if model != "flow" else 1e-5  # the nearest of 100 levels
    torch.testing.assert_close(field, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", MODELS)
def test_vote_selects_one_of_the_candidates(model):
    policy, obs = build(*MODELS[model]), {"obs": torch.randn(3, 2, 3)}
    rules = ["first", "medoid", "density"] + ["line_integral"] * (model != "energy")
    rows = [torch.Generator().manual_seed(i) for i in range(3)]
    chosen = {}
    for rule in rules:
        policy.configure_inference(num_candidates=6, select=rule)
        rows = [torch.Generator().manual_seed(i) for i in range(3)]
        chosen[rule] = policy.predict_chunk(obs, generator=rows).actions
        assert chosen[rule].shape == (3, 16, 2)
    rest = [chosen[rule] for rule in rules[1:]]
    assert not all(torch.equal(chosen["first"], other) for other in rest)


@pytest.mark.parametrize("model", ["flow", "ddim", "ddpm", "unet"])
def test_row_samples_do_not_depend_on_the_batch(model):
    policy, obs = build(*MODELS[model]), torch.randn(2, 2, 3)
    policy.configure_inference(num_candidates=4, select="medoid")

    def predict(rows: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(i) for i in rows]
        return policy.predict_chunk({"obs": obs[rows]}, generator=generators).actions

    torch.testing.assert_close(predict([0, 1])[1], predict([1])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["flow", "ddim", "ddpm"])
def test_selected_chunk_has_the_prefix_and_is_within_limits(model):
    policy, obs = build(*MODELS[model]), {"obs": torch.randn(2, 2, 3)}
    policy.configure_inference(num_candidates=4, select="medoid")
    prefix = torch.full((2, 3, 2), 0.25)
    chunk = policy.predict_chunk(
        obs, constraints=ChunkConstraints(prefix=prefix, project=lambda x: x.clamp(-0.3, 0.3))
    )
    assert torch.equal(chunk.actions[:, :3], prefix) and chunk.actions.abs().max() <= 0.3


def test_candidates_are_projected_before_selection():
    """Two of three samples become equal only by the projection to the limits."""
    policy = build(*MODELS["flow"])
    policy.configure_inference(num_candidates=3, select="density")
    policy.sample = lambda context, noise, constraints, generator: heights.expand_as(noise)
    limit = lambda x: x.clamp(max=0.5)  # noqa: E731
    network = policy.normalize_actions(torch.zeros(1, 2, 3), torch.full((1, 1, 2), 0.5))
    heights = network.max() + torch.tensor([-3.0, 0.5, 1.5]).view(1, 3, 1, 1)
    actions = policy.predict_chunk(
        {"obs": torch.zeros(1, 2, 3)}, constraints=ChunkConstraints(project=limit)
    ).actions
    torch.testing.assert_close(actions, torch.full_like(actions, 0.5))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("flow", {"select": "energy"}, "without an energy, got energy"),
        ("ddim", {"select": "best"}, "one of medoid, density, first, line_integral"),
        (
            "energy",
            {"select": "line_integral"},
            "one of energy, energy_decrease, medoid, density, first",
        ),
        ("flow", {"num_candidates": 0}, "inference.num_candidates must be at least 1, got 0"),
        ("flow", {"scoring_level": 1.0}, "inference.scoring_level must lie between 0 and 1"),
        ("flow", {"scoring_level": math.nan}, "level must be a finite number, got nan"),
    ],
)
def test_unsupported_selection_rules_are_refused(model, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(*MODELS[model]).configure_inference(**changes)


# -- at the end of a descent ----------------------------------------------------------------------


@few_examples
@given(units=st.integers(1, 3), m=st.integers(1, 5), seed=st.integers(0, 99))
def test_best_of_m_is_the_argmin(units, m, seed):
    init = normal(2, units * m, 3, seed=seed)
    result = descend(double_well, init, 3, 0.05)
    best = select(result, m)
    for b in range(2):
        for u in range(units):
            group = range(u * m, (u + 1) * m)
            winner = min(group, key=lambda i: float(result.energies[-1, b, i]))
            assert torch.equal(best.candidate[b, u], result.candidate[b, winner])
            assert torch.equal(best.energies[:, b, u], result.energies[:, b, winner])
            assert torch.equal(best.grad_norms[:, b, u], result.grad_norms[:, b, winner])
            assert best.energies[-1, b, u] <= result.energies[-1, b, u * m]
            assert best.selected_indices is None or best.selected_indices[b, u] == winner
    assert best.steps_used.shape == best.reason.shape == (2, units)
    assert best.path[-1].shape == init.shape
    assert (best.selected_indices is None) == (m == 1)
    assert torch.equal(best.selected_path[-1], best.candidate)  # each unit's own path


def test_selecting_by_the_energy_decrease_takes_the_largest():
    init = torch.tensor([[[0.9], [5.0], [0.5]]])
    result = descend(quadratic(), init, 2, 0.1)
    assert select(result, 3).energies[0, 0, 0] == pytest.approx(0.125)
    best = select(result, 3, "energy_decrease")
    torch.testing.assert_close(best.candidate, torch.tensor([[[5.0 * 0.81]]]))
    torch.testing.assert_close(best.energy_decrease, torch.tensor([[12.5 * (1 - 0.81**2)]]))


def test_selecting_by_a_callable_takes_the_lowest_score():
    result = descend(quadratic(), torch.tensor([[[0.9], [5.0], [0.5]]]), 2, 0.1, final_energy=False)
    best = select(result, 3, lambda x: -x[..., 0])
    assert best.selected_indices is not None and best.selected_indices.item() == 1


@pytest.mark.parametrize(
    ("num_candidates", "score", "message"),
    [
        (3, "energy", "multiple of num_candidates=3"),
        (0, "energy", "multiple of num_candidates=0"),
        (2, "highest", "one of energy, energy_decrease, medoid, .*'highest'"),
        (1, "highest", "one of energy, energy_decrease, medoid, .*'highest'"),
    ],
)
def test_invalid_selections_are_refused(num_candidates, score, message):
    result = descend(quadratic(), torch.ones(2, 4, 1), 2, 0.1)
    with pytest.raises(ValueError, match=message):
        select(result, num_candidates, score)


def test_selecting_by_energy_needs_the_final_energy():
    result = descend(quadratic(), torch.ones(2, 4, 1), 2, 0.1, final_energy=False)
    with pytest.raises(ValueError, match="final_energy=True"):
        select(result, 2)
