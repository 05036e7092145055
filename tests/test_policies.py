"""Every kind of policy: loss, chunks, inference options, storage and relative actions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TINY, compose_config
from tiny_policies import (
    ALL_KINDS,
    ENERGIES,
    HIGH,
    KINDS,
    LOW,
    NORMALIZER,
    SHAPE,
    build,
    build_relative,
    generators,
    observe,
    training_batch,
)

from ebt_policy.errors import ConfigError
from ebt_policy.policies import build_policy, load_policy
from ebt_policy.policies.chunk_constraints import ChunkConstraints


@ALL_KINDS
def test_loss_is_finite_and_reaches_every_parameter(kind):
    policy = build(kind)
    loss, metrics = policy.loss(training_batch())
    assert loss.shape == () and loss.isfinite()
    assert all(value.isfinite().all() for value in metrics.values())
    loss.backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # Behaviour cloning feeds zeros to the candidate stream: its first weights get no gradient.
        assert parameter.grad.any() or (kind, "candidate_in.weight" in name) == ("bc", True), name


@ALL_KINDS
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


@ALL_KINDS
def test_row_generators_make_rows_independent_of_their_batch(kind):
    policy, obs = build(kind), observe(3)
    batched = policy.predict_chunk(obs, generator=generators(5, 6, 7)).actions
    for i, seed in enumerate((5, 6, 7)):
        alone = policy.predict_chunk({"obs": obs["obs"][i : i + 1]}, generator=generators(seed))
        torch.testing.assert_close(alone.actions, batched[i : i + 1], atol=0.02, rtol=0)


@ALL_KINDS
def test_prediction_works_in_every_grad_mode(kind):
    policy, prefix = build(kind), (LOW + HIGH).div(2).expand(1, 2, 2)
    expected = policy.predict_chunk(
        observe(1), constraints=ChunkConstraints(prefix=prefix), generator=generators(0)
    ).actions
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            actual = policy.predict_chunk(
                observe(1),
                constraints=ChunkConstraints(prefix=prefix.clone()),
                generator=generators(0),
            ).actions
        torch.testing.assert_close(actual, expected)
    loss, _ = policy.loss(training_batch())
    loss.backward()  # training works afterwards


@ALL_KINDS
def test_invalid_observations_are_a_one_line_value_error(kind):
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
        (good, torch.full((2, 4, 2), float("inf")), "prefix contains NaN or Inf"),
    ]
    for obs, prefix, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            policy.predict_chunk(obs, constraints=ChunkConstraints(prefix=prefix))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="earlier plan has 8 actions, the horizon is 16"):
        policy.predict_chunk(good, constraints=ChunkConstraints(warm_start=torch.zeros(2, 8, 2)))


@ALL_KINDS
def test_unknown_inference_options_are_named(kind):
    policy = build(kind)
    with pytest.raises(ConfigError, match="wings"):
        policy.configure_inference(wings=2)
    policy.configure_inference()  # no options are no error


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bc"])
def test_inference_options_take_effect(kind):
    policy = build(kind)
    policy.configure_inference(steps=3)
    assert (policy.predict_chunk(observe(2)).steps_used == 3).all()
    for bad in (0, 2.5, "three"):
        with pytest.raises(ConfigError, match="steps"):
            policy.configure_inference(steps=bad)
    assert (policy.predict_chunk(observe(2)).steps_used == 3).all()


@pytest.mark.parametrize("kind", ["flow", "flow without level", "equilibrium", "s1"])
def test_best_of_four_has_no_higher_energy_than_the_first(kind):
    # Row generators draw the first candidate's noise first, so it is the same in both cases.
    policy, obs = build(kind), observe(5)
    policy.configure_inference(num_candidates=1)
    alone = policy.predict_chunk(obs, generator=generators(*range(5))).energy
    policy.configure_inference(num_candidates=4)
    best = policy.predict_chunk(obs, generator=generators(*range(5))).energy
    assert alone is not None and best is not None
    assert (best <= alone + 1e-4).all()
    assert (best < alone - 1e-4).any()


@pytest.mark.parametrize("kind", ENERGIES)
def test_energies_do_not_depend_on_the_order_of_chunks(kind):
    policy, obs = build(kind), observe(2)
    chunks = LOW + (HIGH - LOW) * torch.rand(2, 5, 16, 2)
    energies = policy.energies(obs, chunks)  # type: ignore[operator]
    assert energies.shape == (2, 5) and energies.isfinite().all()
    swapped = policy.energies(obs, chunks.flip(1))  # type: ignore[operator]
    torch.testing.assert_close(swapped, energies.flip(1))


@ALL_KINDS
def test_a_stored_policy_predicts_identically(kind, tmp_path):
    policy = build(kind)
    policy.save(tmp_path)
    loaded = load_policy(tmp_path)
    assert type(loaded) is type(policy) and not loaded.training
    assert loaded.config == policy.config and loaded.shape == policy.shape
    expected = policy.predict_chunk(observe(2), generator=generators(1, 2))
    actual = loaded.predict_chunk(observe(2), generator=generators(1, 2))
    assert torch.equal(actual.actions, expected.actions)
    assert (actual.energy is None) == (expected.energy is None)


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


def test_invalid_configurations_are_refused():
    config = {**compose_config(*TINY), "shape": SHAPE}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"model": {"name": "oracle"}}, "model=oracle is unknown"),
        ({"objective": {"name": "luck"}}, "objective=luck is unknown"),
        ({"objective": {"name": "flow", "wings": 2}}, "no option wings"),
        ({"size": {**config["size"], "wings": 2}}, "no option wings"),
        ({"size": {**config["size"], "width": "wide"}}, "width must be an integer, got 'wide'"),
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


@ALL_KINDS
def test_relative_actions_are_measured_from_the_newest_observation(kind):
    policy, obs = build_relative(kind), observe(3)
    actions = torch.rand(3, 16, 2) * 512
    batch = policy.normalize({"obs": obs["obs"], "action": actions})
    torch.testing.assert_close(
        policy.unnormalize_actions(obs["obs"], batch["action"]), actions, atol=1e-3, rtol=1e-5
    )
    moved = {"obs": obs["obs"].clone(), "action": actions + 30}
    moved["obs"][:, -1, 18:] += 30  # moving both changes nothing
    torch.testing.assert_close(
        policy.normalize(moved)["action"], batch["action"], atol=1e-4, rtol=1e-4
    )
    chunk = policy.predict_chunk(obs, generator=generators(0, 1, 2))
    low, high = policy.normalizer.box("action")
    in_units = policy.normalize({"obs": obs["obs"], "action": chunk.actions})["action"]
    assert (in_units >= low - 1e-3).all() and (in_units <= high + 1e-3).all()
    if kind != "bc":
        prefix = torch.rand(3, 2, 2) * 512
        constrained = policy.predict_chunk(
            obs, constraints=ChunkConstraints(prefix=prefix), generator=generators(0, 1, 2)
        )
        torch.testing.assert_close(constrained.actions[:, :2], prefix)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", ["flow", "equilibrium", "flow_matching", "diffusion ddim", "bc"])
def test_compiled_prediction_equals_eager(kind):
    policy, obs = build_relative(kind).requires_grad_(False), observe(1)
    expected = policy.predict_chunk(obs, generator=generators(0))
    policy.compile_prediction()
    actual = policy.predict_chunk(obs, generator=generators(0))
    torch.testing.assert_close(actual.actions, expected.actions, atol=1e-2, rtol=1e-4)
    constrained = policy.predict_chunk(
        obs, constraints=ChunkConstraints(prefix=actual.actions[:, :1]), generator=generators(0)
    )
    assert constrained.actions.isfinite().all()
