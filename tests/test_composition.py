"""Products of policies, and Metropolis steps."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TINY, compose_config
from tiny_policies import ENERGIES, HIGH, KINDS, LOW, SHAPE, build, generators, observe

from ebt_policy import compose
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.energy import Descent, FixedSteps
from ebt_policy.errors import ConfigError
from ebt_policy.policies import (
    ChunkConstraints,
    EnergyPolicy,
    KeepIn,
    build_policy,
    load_policy,
    mixture,
    product,
    without,
)
from ebt_policy.policies.chunk_constraints import normalize_constraints


class Bowl(torch.nn.Module):
    """The energy k |x - c|^2 / 2 in place of a network."""

    def __init__(self, curvature, centre):
        super().__init__()
        self.curvature, self.centre = curvature, centre
        self.device_marker = torch.nn.Parameter(torch.zeros(1))

    def encode(self, features):
        return features

    def forward(self, context, x, level=None):
        return (self.curvature * (x - self.centre).square() / 2).flatten(2).sum(-1)


def bowl(curvature, centre, kind="equilibrium", policy=None):
    policy = policy or build(kind)
    policy.net = Bowl(curvature, centre)
    return policy


def test_the_product_of_two_quadratics_has_its_closed_form_minimum():
    policy = product([bowl(1.0, -0.5), bowl(3.0, 0.5)], [0.4, 0.6])
    context = policy.net.encode(policy.encode_observation(observe(2)))
    descent = Descent(FixedSteps(200, 0.2))
    result = descent(lambda x, level: policy.net(context, x, level), torch.zeros(2, 1, 16, 2))
    expected = (0.4 * 1 * -0.5 + 0.6 * 3 * 0.5) / (0.4 * 1 + 0.6 * 3)
    torch.testing.assert_close(result.candidate, torch.full_like(result.candidate, expected))


def test_members_with_other_units_agree_in_env_units():
    """Both members have their minimum at the same action in env units."""
    other = Normalizer.fit(
        {
            "obs": torch.tensor([[0.0] * 20, [512.0] * 20]),
            "action": torch.stack([LOW + 20, HIGH + 100]),
        }
    )
    config = compose_config(*TINY, "objective=equilibrium")
    second = build_policy({**config, "shape": SHAPE}, other).eval()
    first, target = build("equilibrium"), torch.tensor([200.0, 210.0])
    bowl(10.0, first.normalizer.normalize("action", target), policy=first)
    bowl(20.0, second.normalizer.normalize("action", target), policy=second)
    both = product([first, second])
    both.configure_inference(steps=50, num_candidates=1)
    actions = both.predict_chunk(observe(2)).actions
    torch.testing.assert_close(actions, target.expand_as(actions), atol=0.1, rtol=0)


class PointMass(torch.nn.Module):
    """The exact flow to a single chunk, as an energy or as a velocity."""

    def __init__(self, target, is_energy):
        super().__init__()
        self.target, self.is_energy = target, is_energy
        self.device_marker = torch.nn.Parameter(torch.zeros(1))

    def encode(self, features):
        return features

    def forward(self, context, x, level):
        distance = (x - self.target) / (1 - level[..., None, None])
        if not self.is_energy:
            return -distance
        return (distance * (x - self.target) / 2).flatten(2).sum(-1)


@pytest.mark.parametrize("kind", ["flow", "flow_matching"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_members_with_other_units_agree_along_levels(kind, steps):
    """Every step ends at the chunk that both members know, whatever their units."""
    other = Normalizer.fit(
        {
            "obs": torch.tensor([[0.0] * 20, [512.0] * 20]),
            "action": torch.stack([LOW + 20, LOW + 20 + 1.2 * (HIGH - LOW)]),
        }
    )
    config = compose_config(*TINY, *KINDS[kind])
    members = [build(kind), build_policy({**config, "shape": SHAPE}, other).eval()]
    target = torch.tensor([200.0, 210.0])
    for member in members:
        own = member.normalizer.normalize("action", target)
        member.net = PointMass(own, kind == "flow")  # type: ignore[assignment]
        member.configure_inference(steps=steps, num_candidates=2)
    actions = product(members).predict_chunk(observe(2)).actions
    torch.testing.assert_close(actions, target.expand_as(actions), atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", [*ENERGIES, "flow_matching"])
def test_a_policy_times_itself_is_the_same_policy(kind):
    policy, obs = build(kind), observe(2)
    policy.configure_inference(steps=2, num_candidates=3)
    for composed in (product([policy, policy]), without(policy, build(kind), 0.0)):
        alone = policy.predict_chunk(obs, generator=generators(0, 1))
        chunk = composed.predict_chunk(obs, generator=generators(0, 1))
        torch.testing.assert_close(chunk.actions, alone.actions, atol=0.02, rtol=1e-4)
        if isinstance(composed, EnergyPolicy):
            torch.testing.assert_close(chunk.energy, alone.energy, atol=1e-3, rtol=1e-3)
            energies = composed.energies(obs, chunk.actions.unsqueeze(1))[:, 0]
            torch.testing.assert_close(energies, chunk.energy, atol=1e-2, rtol=1e-3)


def test_without_moves_away_from_the_other_policy():
    # p^2 / q of normal densities with precisions 2 and 1 has the mean (2 * 2 * 0 - 1 * 0.4) / 3.
    policy = without(bowl(2.0, 0.0), bowl(1.0, 0.4))
    context = policy.net.encode(policy.encode_observation(observe(1)))
    result = Descent(FixedSteps(300, 0.1))(
        lambda x, level: policy.net(context, x, level), torch.zeros(1, 1, 16, 2)
    )
    assert float(result.candidate.mean()) == pytest.approx(-0.4 / 3, abs=1e-4)


@pytest.mark.parametrize("kind", ["flow", "flow_matching"])
def test_products_are_stored_and_loaded(kind, tmp_path):
    torch.manual_seed(3)
    second = build(kind)
    for parameter in second.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    first = build(kind)
    for i, member in enumerate((first, second)):
        save(member, tmp_path / f"member{i}")
    members = [f"{tmp_path}/member0", f"{tmp_path}/member1"]
    arguments = {"checkpoint": members, "composition": "product", "weights": None}
    compose.run({**arguments, "output": f"{tmp_path}/product"})
    loaded = load_policy(tmp_path / "product")
    expected = product([load_policy(path) for path in members])
    chunks = [p.predict_chunk(observe(2), generator=generators(0, 1)) for p in (expected, loaded)]
    assert torch.equal(chunks[0].actions, chunks[1].actions)
    assert loaded.parameter_count == first.parameter_count + second.parameter_count
    assert not list(tmp_path.glob(".writing*"))
    with pytest.raises(ConfigError, match=r"output=.*product exists; give a new folder"):
        compose.run({**arguments, "output": f"{tmp_path}/product"})
    with pytest.raises(ConfigError, match="cannot be a member of a composed policy"):
        product([loaded, loaded])
    with pytest.raises(ConfigError, match="cannot be trained; train its members"):
        loaded({"noise": {}})


def save(policy, folder):
    folder.mkdir()
    policy.config = {**policy.config, "seed": 0}
    policy.save(folder)


@pytest.mark.parametrize(
    ("members", "weights", "message"),
    [
        (["flow"], None, "at least two members, got 1"),
        ([], None, "at least two members, got 0"),
        (["flow", "flow"], [0.5, 0.6], "sum to 1"),
        (["flow", "flow"], [1.0], "one number for each of the 2 policies"),
        (["flow", "flow"], [math.nan, 1.0], "sum to 1"),
        (["flow", "equilibrium"], None, "the same objective"),
        (["flow", "flow_matching"], None, "got model=ebt, model=flow_matching"),
        (["bc", "bc"], None, "got model=bc, model=bc"),
    ],
)
def test_policies_that_do_not_fit_together(members, weights, message):
    with pytest.raises(ConfigError, match=message):
        product([build(kind) for kind in members], weights)


def test_shapes_and_units_must_agree():
    with pytest.raises(ConfigError, match="must have the same horizon, got 16 and 24"):
        product([build("flow"), build("flow", horizon=24)])
    wide = Normalizer.fit(
        {
            "obs": torch.tensor([[0.0] * 20, [512.0] * 20]),
            "action": torch.stack([LOW, LOW + 5 * (HIGH - LOW)]),
        }
    )
    config = compose_config(*TINY, "objective=flow")
    with pytest.raises(ConfigError, match=r"policy 2 .* differs by a factor of 5.0; at most 2"):
        product([build("flow"), build_policy({**config, "shape": SHAPE}, wide)])
    with pytest.raises(ConfigError, match="strength must not be negative"):
        without(build("flow"), build("flow"), -1.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"checkpoint": None, "output": "x"}, "missing required option checkpoint"),
        ({"checkpoint": ["a", "b"], "output": None}, "missing required option output"),
        (
            {"checkpoint": ["a", "b"], "output": "x", "composition": "sum"},
            "composition must be product or mixture, got sum",
        ),
    ],
)
def test_missing_options_of_the_command(config, message):
    with pytest.raises(ConfigError, match=message):
        compose.run({"composition": "product", "weights": None, **config})


# -- mixtures -----------------------------------------------------------------------------------


def test_a_mixture_selects_from_the_member_of_the_larger_weight():
    """Two narrow bowls far apart: the score of a candidate is the score of its own member."""
    members = [bowl(20.0, -0.5), bowl(20.0, 0.5)]
    for member in members:
        member.configure_inference(steps=50, num_candidates=3)
    for weights, expected in (([0.9, 0.1], -0.5), ([0.1, 0.9], 0.5)):
        policy = mixture(members, weights)
        actions = policy.predict_chunk(observe(2), generator=generators(0, 1)).actions
        normalized = policy.normalize_actions(observe(2)["obs"], actions)
        torch.testing.assert_close(normalized.mean(), torch.tensor(expected), atol=0.1, rtol=0)


def test_the_energy_of_a_mixture_is_its_negative_log_density():
    """With members of equal shape, the constants of their energies cancel."""
    first, second = bowl(1.0, -0.5), bowl(1.0, 0.5)
    for member in (first, second):
        member.configure_inference(steps=3, num_candidates=4)
    policy, obs = mixture([first, second], [0.25, 0.75]), observe(1)
    features = policy.encode_observation(obs)
    constraints = normalize_constraints(policy, obs, ChunkConstraints(), None)
    candidates = policy._sample_candidates(features, constraints, generators(0))
    x, energy = candidates.chunks, policy._selection_score([None, None], candidates)
    assert x.shape == (1, 8, 16, 2)
    scores = [member.net(None, x) for member in (first, second)]
    terms = [
        math.log(weight) - (score - score[:, rows].mean(1, keepdim=True))
        for weight, score, rows in zip((0.25, 0.75), scores, (slice(4), slice(4, 8)), strict=True)
    ]
    torch.testing.assert_close(energy, -torch.logsumexp(torch.stack(terms), 0))


@pytest.mark.parametrize("kind", ["flow", "equilibrium", "flow_matching", "diffusion"])
def test_mixtures_obey_constraints_and_costs(kind, tmp_path):
    members, obs = [build(kind), build(kind)], observe(2)
    rule = "energy" if kind in ENERGIES else "density"
    policy = mixture(members)
    policy.configure_inference(num_candidates=3, select=rule)
    middle, low, high = (LOW + HIGH) / 2, LOW + 100, HIGH - 100
    chunk = policy.predict_chunk(
        obs,
        constraints=ChunkConstraints(
            prefix=middle.expand(2, 3, 2),
            project=lambda x: x.clamp(low, high),
            costs=[KeepIn(low.tolist(), high.tolist())],
        ),
        generator=generators(0, 1),
    )
    assert torch.equal(chunk.actions[:, :3], middle.expand(2, 3, 2))
    assert (chunk.actions >= low - 1e-2).all() and (chunk.actions <= high + 1e-2).all()
    assert chunk.cost is not None and float(chunk.cost.max()) < 1e-3
    save(policy, tmp_path / "mixture")
    again = load_policy(tmp_path / "mixture")
    again.configure_inference(num_candidates=3, select=rule)
    chunks = [p.predict_chunk(obs, generator=generators(0, 1)).actions for p in (policy, again)]
    assert torch.equal(*chunks)


def test_wrong_mixtures():
    with pytest.raises(ConfigError, match="weights of a mixture must be positive"):
        mixture([build("flow"), build("flow")], [1.5, -0.5])
    with pytest.raises(ConfigError, match="the same model, got model=ebt and model=flow_matching"):
        mixture([build("flow"), build("flow_matching")])
    policy = mixture([build("flow_matching"), build("flow_matching")])
    with pytest.raises(ConfigError, match="select=line_integral is not available for a mixture"):
        policy.configure_inference(select="line_integral")
    with pytest.raises(ConfigError, match="select=energy_decrease is not available"):
        mixture([build("flow"), build("flow")]).configure_inference(select="energy_decrease")


def test_options_of_a_mixture_do_not_change_its_members():
    member = build("flow")
    mixture([member, build("flow")]).configure_inference(steps=9)
    assert member.inference.steps != 9
