from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from conftest import TINY, compose_config

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.errors import ConfigError
from ebt_policy.policies import Policy, build_policy, load_policy
from ebt_policy.policies.chunk_constraints import ChunkConstraints
from ebt_policy.policies.prefix import PREFIX_NOISE_STD

QUICK_DIFFUSION = ("model=diffusion", "model.inference.steps=4")
KINDS = {
    "flow": ("objective=flow",),
    "flow without level": ("objective=flow", "objective.condition_on_noise_level=false"),
    "equilibrium": ("objective=equilibrium",),
    "s1": ("objective=s1",),
    "s2": ("objective=s2",),
    "contrastive": ("objective=contrastive",),
    "diffusion": QUICK_DIFFUSION,
    "diffusion ddim": (*QUICK_DIFFUSION, "model.inference.scheduler=ddim"),
    "unet": (*QUICK_DIFFUSION, "model.network=unet"),
    "flow_matching": ("model=flow_matching",),
    "bc": ("model=bc",),
    "ibc": ("model=ibc", "model.inference.samples=32"),
}
ENERGIES = ("flow", "flow without level", "equilibrium", "s1", "s2", "contrastive")
SHAPE = {"obs_dim": 20, "action_dim": 2, "horizon": 16, "n_obs_steps": 2, "n_action_steps": 8}
LOW, HIGH = torch.tensor([10.0, 100.0]), torch.tensor([500.0, 400.0])
NORMALIZER = Normalizer.fit(
    {"obs": torch.tensor([[0.0] * 20, [512.0] * 20]), "action": torch.stack([LOW, HIGH])}
)


def build(kind: str, *overrides: str, **shape: Any) -> Policy:
    torch.manual_seed(0)
    config = compose_config(*TINY, *KINDS[kind], *overrides)
    return build_policy({**config, "shape": SHAPE | shape}, NORMALIZER).eval()


def observe(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"obs": torch.rand(rows, 2, 20, generator=generator) * 512}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def training_batch(rows: int = 4) -> dict[str, Any]:
    torch.manual_seed(1)
    return {"obs": torch.rand(rows, 2, 20) * 2 - 1, "action": torch.rand(rows, 16, 2) * 2 - 1}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_loss_is_finite_and_reaches_every_parameter(kind):
    policy = build(kind)
    loss, metrics = policy.loss(training_batch())
    assert loss.shape == () and loss.isfinite()
    assert all(value.isfinite().all() for value in metrics.values())
    loss.backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # Behaviour cloning feeds zeros to the candidate stream, whose first weights then rest.
        assert parameter.grad.any() or (kind, "candidate_in.weight" in name) == ("bc", True), name


def test_chunk_is_in_env_units_within_the_demonstrated_limits(kind):
    policy = build(kind)
    chunk = policy.predict_chunk(observe(3), generator=torch.Generator().manual_seed(0))
    assert chunk.actions.shape == (3, 16, 2) and chunk.actions.dtype == torch.float32
    assert (chunk.actions >= LOW - 1e-3).all() and (chunk.actions <= HIGH + 1e-3).all()
    assert chunk.steps_used.shape == (3,) and (chunk.steps_used >= 1).all()
    assert not chunk.actions.requires_grad
    assert (chunk.energy is not None) == (kind in (*ENERGIES, "ibc"))
    assert (chunk.grad_norm is not None) == (kind in ENERGIES)
    for value in (chunk.energy, chunk.grad_norm):
        assert value is None or (value.shape == (3,) and value.isfinite().all())


def test_prefix_is_returned_exactly_and_the_rest_is_made_to_fit_it(kind):
    policy, obs = build(kind), observe(2)
    first = torch.tensor([30.1, 120.7]).expand(2, 4, 2)
    second = torch.tensor([480.3, 390.9]).expand(2, 4, 2)
    chunks = [
        policy.predict_chunk(
            obs, constraints=ChunkConstraints(prefix=prefix), generator=generators(0, 1)
        ).actions
        for prefix in (first, second)
    ]
    assert torch.equal(chunks[0][:, :4], first) and torch.equal(chunks[1][:, :4], second)
    same = torch.allclose(chunks[0][:, 4:], chunks[1][:, 4:], atol=1e-3)
    assert same == (kind == "bc")  # one pass from observations: there is nothing to fit


def test_a_policy_can_be_told_what_is_committed(kind):
    policy, obs = build(kind, max_prefix_len=6), observe(2)
    read = policy.encode_observation(obs)
    assert read.shape == (2, 2, 20 + 6 * 3) and not read[..., 20:].any()
    prefix = torch.rand(2, 4, 2)
    told = policy.encode_observation(obs, prefix)[:, :, 20:].unflatten(-1, (6, 3))
    for step in told.unbind(1):
        torch.testing.assert_close(step[:, :4], torch.cat([prefix, torch.ones(2, 4, 1)], dim=-1))
        assert not step[:, 4:].any()
    longer = torch.cat([prefix, torch.rand(2, 5, 2)], dim=1)  # as far as it can be told
    assert policy.encode_observation(obs, longer).shape == read.shape
    chunks = [
        policy.predict_chunk(
            obs, constraints=ChunkConstraints(prefix=at.expand(2, 4, 2)), generator=generators(0, 1)
        ).actions
        for at in (torch.tensor([30.1, 120.7]), torch.tensor([480.3, 390.9]))
    ]
    assert not torch.allclose(chunks[0][:, 4:], chunks[1][:, 4:], atol=1e-2)


def test_training_tells_prefixes_of_all_lengths_and_nothing_of_later_actions(kind):
    policy, batch = build(kind, max_prefix_len=6), training_batch(512)
    drawn = policy.with_noise(batch)
    counts = drawn["noise"]["prefix_length"]
    assert counts.shape == (512,) and set(counts.tolist()) == set(range(7))
    assert 0.4 < (counts == 0).float().mean() < 0.7  # a robot that stands has committed nothing
    read = policy.observation_features(drawn)
    later = torch.arange(16) >= counts.unsqueeze(1)
    other = torch.where(later.unsqueeze(-1), torch.rand(512, 16, 2), drawn["action"])
    torch.testing.assert_close(policy.observation_features({**drawn, "action": other}), read)
    for count in range(7):  # as it is told when it predicts
        row = counts.tolist().index(count)
        alone = {"obs": batch["obs"][row : row + 1]}
        prefix = batch["action"][row : row + 1, :count]
        told = policy.observation_features(alone, prefix) - read[row : row + 1]
        assert told.abs().max() < 6 * PREFIX_NOISE_STD
    loss, _ = policy(drawn)
    assert loss.isfinite()


def test_a_prefix_that_leaves_nothing_to_choose_is_refused():
    with pytest.raises(ConfigError, match="max_prefix_len=16 must be at least 0 and less"):
        build("flow", max_prefix_len=16)


def test_what_may_be_executed_is_what_is_chosen(kind):
    policy, obs = build(kind), observe(2)
    low, high = LOW + (HIGH - LOW) * 0.4, LOW + (HIGH - LOW) * 0.6
    seen = []

    def project(chunks):
        seen.append(chunks.shape)
        return chunks.clamp(low, high)

    chunk = policy.predict_chunk(
        obs, constraints=ChunkConstraints(project=project), generator=generators(0, 1)
    )
    assert (chunk.actions >= low - 1e-3).all() and (chunk.actions <= high + 1e-3).all()
    assert all(shape[0] == 2 and shape[-2:] == (16, 2) for shape in seen)
    if kind in ENERGIES:  # the energy is that of what is executed
        assert len(seen) > 1
        energy = policy.energies(obs, chunk.actions.unsqueeze(1))[:, 0]
        torch.testing.assert_close(energy, chunk.energy, atol=1e-3, rtol=1e-3)
    prefix = (LOW + HIGH).div(2).expand(2, 3, 2)
    both = policy.predict_chunk(
        obs, constraints=ChunkConstraints(prefix=prefix, project=project)
    ).actions
    assert torch.equal(both[:, :3], prefix) and (both >= low - 1e-3).all()


def test_a_warm_start_needs_fewer_steps_and_stays_near(kind):
    policy, obs = build(kind), observe(2)
    cold = policy.predict_chunk(obs, generator=generators(0, 1))
    warm = policy.predict_chunk(
        obs, constraints=ChunkConstraints(warm_start=cold.actions), generator=generators(2, 3)
    )
    if kind not in ENERGIES:
        again = policy.predict_chunk(obs, generator=generators(2, 3))
        torch.testing.assert_close(warm.actions, again.actions)
        return
    assert (warm.steps_used == 1).all()
    policy.configure_inference(warm_start_level=0.99)
    near = policy.predict_chunk(
        obs, constraints=ChunkConstraints(warm_start=cold.actions), generator=generators(2, 3)
    ).actions
    assert (near - cold.actions).abs().mean() < (warm.actions - cold.actions).abs().mean()


def test_prefix_may_be_the_whole_chunk_or_nothing(kind):
    policy, obs = build(kind), observe(1)
    whole = (LOW + HIGH).div(2).expand(1, 16, 2)
    assert torch.equal(
        policy.predict_chunk(obs, constraints=ChunkConstraints(prefix=whole)).actions, whole
    )
    nothing = policy.predict_chunk(
        obs, constraints=ChunkConstraints(prefix=whole[:, :0]), generator=generators(0)
    ).actions
    plain = policy.predict_chunk(obs, generator=generators(0)).actions
    # Noising an empty prefix draws nothing, so the rest sees the same noise.
    torch.testing.assert_close(nothing, plain)


def test_row_generators_make_rows_independent_of_their_batch(kind):
    policy, obs = build(kind), observe(3)
    together = policy.predict_chunk(obs, generator=generators(5, 6, 7)).actions
    for i, seed in enumerate((5, 6, 7)):
        alone = policy.predict_chunk({"obs": obs["obs"][i : i + 1]}, generator=generators(seed))
        torch.testing.assert_close(alone.actions, together[i : i + 1], atol=0.02, rtol=0)


def test_predicting_works_whatever_the_gradient_mode(kind):
    policy, prefix = build(kind), (LOW + HIGH).div(2).expand(1, 2, 2)
    want = policy.predict_chunk(
        observe(1), constraints=ChunkConstraints(prefix=prefix), generator=generators(0)
    ).actions
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = policy.predict_chunk(
                observe(1),
                constraints=ChunkConstraints(prefix=prefix.clone()),
                generator=generators(0),
            ).actions
        torch.testing.assert_close(got, want)
    loss, _ = policy.loss(training_batch())
    loss.backward()  # and it leaves training as it was


def test_bad_input_is_one_clear_value_error(kind):
    policy, good = build(kind), observe(2)
    poisoned = {"obs": good["obs"].clone()}
    poisoned["obs"][1, 0, 3] = float("nan")
    cases = [
        ({}, None, 'key "obs"'),
        ({"obs": good["obs"][0]}, None, r"must be \(B, 2, 20\), got \(2, 20\)"),
        ({"obs": good["obs"][:, :1]}, None, r"must be \(B, 2, 20\), got \(2, 1, 20\)"),
        (poisoned, None, "NaN or Inf"),
        (good, torch.zeros(1, 4, 2), r"must be \(2, P, 2\), got \(1, 4, 2\)"),
        (good, torch.zeros(2, 4, 3), r"must be \(2, P, 2\), got \(2, 4, 3\)"),
        (good, torch.zeros(2, 17, 2), "has 17 actions, the horizon is 16"),
        (good, torch.full((2, 4, 2), float("inf")), "prefix holds NaN or Inf"),
    ]
    for obs, prefix, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            policy.predict_chunk(obs, constraints=ChunkConstraints(prefix=prefix))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="earlier plan has 8 actions, the horizon is 16"):
        policy.predict_chunk(good, constraints=ChunkConstraints(warm_start=torch.zeros(2, 8, 2)))


def test_unknown_inference_options_are_named(kind):
    policy = build(kind)
    with pytest.raises(ConfigError, match="wings"):
        policy.configure_inference(wings=2)
    policy.configure_inference()  # no change is no error


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bc"])
def test_inference_options_change_how_it_predicts(kind):
    policy = build(kind)
    policy.configure_inference(steps=3)
    assert (policy.predict_chunk(observe(2)).steps_used == 3).all()
    for bad in (0, 2.5, "three"):
        with pytest.raises(ConfigError, match="steps"):
            policy.configure_inference(steps=bad)
    assert (policy.predict_chunk(observe(2)).steps_used == 3).all()


@pytest.mark.parametrize("kind", ["flow", "flow without level", "equilibrium", "s1"])
def test_best_of_four_is_no_worse_than_the_first_of_them(kind):
    # Row generators draw the first candidate's noise first, so it is the one drawn alone.
    policy, obs = build(kind), observe(5)
    policy.configure_inference(num_candidates=1)
    alone = policy.predict_chunk(obs, generator=generators(*range(5))).energy
    policy.configure_inference(num_candidates=4)
    best = policy.predict_chunk(obs, generator=generators(*range(5))).energy
    assert alone is not None and best is not None
    assert (best <= alone + 1e-4).all()
    assert (best < alone - 1e-4).any()


@pytest.mark.parametrize("kind", ["flow", "equilibrium"])
@pytest.mark.parametrize("candidates", [1, 3])
def test_deadline_ends_the_descent_in_time(kind, candidates, monkeypatch):
    policy = build(kind)
    policy.configure_inference(steps=100, num_candidates=candidates)
    network = policy.get_submodule("net")
    forward = network.forward

    def slow(*arguments):
        time.sleep(0.01)
        return forward(*arguments)

    monkeypatch.setattr(network, "forward", slow)
    start = time.perf_counter()
    chunk = policy.predict_chunk(observe(1), constraints=ChunkConstraints(deadline_s=0.15))
    assert time.perf_counter() - start < 0.6  # all steps would take more than a second
    assert 1 <= int(chunk.steps_used) < 30
    assert chunk.actions.isfinite().all()


@pytest.mark.parametrize("kind", ENERGIES)
def test_energies_rank_given_chunks(kind):
    policy, obs = build(kind), observe(2)
    chunks = LOW + (HIGH - LOW) * torch.rand(2, 5, 16, 2)
    energies = policy.energies(obs, chunks)  # type: ignore[operator]
    assert energies.shape == (2, 5) and energies.isfinite().all()
    swapped = policy.energies(obs, chunks.flip(1))  # type: ignore[operator]
    torch.testing.assert_close(swapped, energies.flip(1))


def test_a_stored_policy_predicts_identically(kind, tmp_path):
    policy = build(kind)
    policy.save(tmp_path)
    loaded = load_policy(tmp_path)
    assert type(loaded) is type(policy) and not loaded.training
    assert loaded.config == policy.config and loaded.shape == policy.shape
    want = policy.predict_chunk(observe(2), generator=generators(1, 2))
    got = loaded.predict_chunk(observe(2), generator=generators(1, 2))
    assert torch.equal(got.actions, want.actions)
    assert (got.energy is None) == (want.energy is None)


@pytest.mark.parametrize("size", ["xs", "s", "m", "l"])
def test_models_of_one_size_have_equal_parameter_counts(size):
    counts, width = {}, compose_config(f"size={size}")["size"]
    with torch.device("meta"):
        for name, overrides in KINDS.items():
            config = {**compose_config(*TINY, *overrides), "size": width, "shape": SHAPE}
            counts[name] = build_policy(config, NORMALIZER).parameter_count
    mean = sum(counts.values()) / len(counts)
    off = {name: count / mean - 1 for name, count in counts.items()}
    assert max(off.values()) - min(off.values()) <= 0.05, off


def test_what_cannot_be_built_is_named():
    config = {**compose_config(*TINY), "shape": SHAPE}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"model": {"name": "oracle"}}, "model=oracle is unknown"),
        ({"objective": {"name": "luck"}}, "objective=luck is unknown"),
        ({"objective": {"name": "flow", "wings": 2}}, "no option wings"),
        ({"size": {**config["size"], "wings": 2}}, "no option wings"),
        ({"size": {**config["size"], "width": "wide"}}, "width must be int, got 'wide'"),
        ({"size": {"width": 16}}, "needs the option heads"),
        ({"size": {**config["size"], "width": 18}}, "multiple of twice heads"),
        ({"model": {**config["model"], "actions_per_token": 5}}, "must divide the horizon 16"),
        ({"model": {**config["model"], "inference": {"steps": 0}}}, "at least 1"),
        (
            {"model": {**config["model"], "inference": {"select": "luck"}}},
            "one of energy, energy_decrease",
        ),
    ]
    for change, message in bad:
        with pytest.raises(ValueError, match=message) as caught:
            build_policy({**config, **change}, NORMALIZER)
        assert "\n" not in str(caught.value)


def relative(kind: str) -> Policy:
    """A policy whose actions are measured from the last two entries of the observation."""
    torch.manual_seed(0)
    config = compose_config(*TINY, *KINDS[kind])
    limits = {"obs": torch.tensor([[0.0] * 20, [512.0] * 20]), "action": torch.randn(99, 2) * 60}
    normalizer = Normalizer.fit(limits, standardized=("action",))
    return build_policy({**config, "shape": {**SHAPE, "relative_to": [18, 19]}}, normalizer).eval()


def test_relative_actions_are_measured_from_the_newest_observation(kind):
    policy, obs = relative(kind), observe(3)
    actions = torch.rand(3, 16, 2) * 512
    batch = policy.normalize({"obs": obs["obs"], "action": actions})
    torch.testing.assert_close(
        policy.unnormalize_actions(obs["obs"], batch["action"]), actions, atol=1e-3, rtol=1e-5
    )
    moved = {"obs": obs["obs"].clone(), "action": actions + 30}
    moved["obs"][:, -1, 18:] += 30  # robot and actions together: nothing changes
    torch.testing.assert_close(
        policy.normalize(moved)["action"], batch["action"], atol=1e-4, rtol=1e-4
    )
    chunk = policy.predict_chunk(obs, generator=generators(0, 1, 2))
    low, high = policy.normalizer.box("action")
    in_units = policy.normalize({"obs": obs["obs"], "action": chunk.actions})["action"]
    assert (in_units >= low - 1e-3).all() and (in_units <= high + 1e-3).all()
    if kind != "bc":
        prefix = torch.rand(3, 2, 2) * 512
        held = policy.predict_chunk(
            obs, constraints=ChunkConstraints(prefix=prefix), generator=generators(0, 1, 2)
        )
        torch.testing.assert_close(held.actions[:, :2], prefix)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", ["flow", "equilibrium", "flow_matching", "diffusion ddim", "bc"])
def test_compiled_prediction_equals_eager(kind):
    policy, obs = relative(kind).requires_grad_(False), observe(1)
    expected = policy.predict_chunk(obs, generator=generators(0))
    policy.compile_prediction()
    found = policy.predict_chunk(obs, generator=generators(0))
    torch.testing.assert_close(found.actions, expected.actions, atol=1e-2, rtol=1e-4)
    held = policy.predict_chunk(
        obs, constraints=ChunkConstraints(prefix=found.actions[:, :1]), generator=generators(0)
    )
    assert held.actions.isfinite().all()
