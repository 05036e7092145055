"""Constraints of a chunk: committed prefixes, projections, warm starts and deadlines."""

from __future__ import annotations

import time

import pytest
import torch
from tiny_policies import ALL_KINDS, ENERGIES, HIGH, LOW, build, generators, observe, training_batch

from ebt_policy.errors import ConfigError
from ebt_policy.policies.chunk_constraints import ChunkConstraints
from ebt_policy.policies.prefix import PREFIX_NOISE_STD


@ALL_KINDS
def test_prefix_is_returned_exactly_and_conditions_the_rest(kind):
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
    assert same == (kind == "bc")  # bc predicts once, without a descent


@ALL_KINDS
def test_policy_is_conditioned_on_the_committed_prefix(kind):
    policy, obs = build(kind, max_prefix_len=6), observe(2)
    features = policy.encode_observation(obs)
    assert features.shape == (2, 2, 20 + 6 * 3) and not features[..., 20:].any()
    prefix = torch.rand(2, 4, 2)
    prefix_features = policy.encode_observation(obs, prefix)[:, :, 20:].unflatten(-1, (6, 3))
    for step in prefix_features.unbind(1):
        torch.testing.assert_close(step[:, :4], torch.cat([prefix, torch.ones(2, 4, 1)], dim=-1))
        assert not step[:, 4:].any()
    longer = torch.cat([prefix, torch.rand(2, 5, 2)], dim=1)  # only its first 6 actions are used
    assert policy.encode_observation(obs, longer).shape == features.shape
    chunks = [
        policy.predict_chunk(
            obs,
            constraints=ChunkConstraints(prefix=position.expand(2, 4, 2)),
            generator=generators(0, 1),
        ).actions
        for position in (torch.tensor([30.1, 120.7]), torch.tensor([480.3, 390.9]))
    ]
    assert not torch.allclose(chunks[0][:, 4:], chunks[1][:, 4:], atol=1e-2)


@ALL_KINDS
def test_training_prefixes_have_all_lengths_and_hide_later_actions(kind):
    policy, batch = build(kind, max_prefix_len=6), training_batch(512)
    noisy_batch = policy.with_noise(batch)
    counts = noisy_batch["noise"]["prefix_length"]
    assert counts.shape == (512,) and set(counts.tolist()) == set(range(7))
    assert 0.4 < (counts == 0).float().mean() < 0.7  # a robot at rest has no committed actions
    features = policy.observation_features(noisy_batch)
    later = torch.arange(16) >= counts.unsqueeze(1)
    other = torch.where(later.unsqueeze(-1), torch.rand(512, 16, 2), noisy_batch["action"])
    torch.testing.assert_close(
        policy.observation_features({**noisy_batch, "action": other}), features
    )
    for count in range(7):  # equal to the features at prediction, up to noise
        row = counts.tolist().index(count)
        alone = {"obs": batch["obs"][row : row + 1]}
        prefix = batch["action"][row : row + 1, :count]
        difference = policy.observation_features(alone, prefix) - features[row : row + 1]
        assert difference.abs().max() < 6 * PREFIX_NOISE_STD
    loss, _ = policy(noisy_batch)
    assert loss.isfinite()


def test_max_prefix_must_be_shorter_than_the_chunk():
    with pytest.raises(ConfigError, match="max_prefix_len=16 must be at least 0 and less"):
        build("flow", max_prefix_len=16)


@ALL_KINDS
def test_chunks_are_projected_during_selection(kind):
    policy, obs = build(kind), observe(2)
    low, high = LOW + (HIGH - LOW) * 0.4, LOW + (HIGH - LOW) * 0.6
    shapes = []

    def project(chunks):
        shapes.append(chunks.shape)
        return chunks.clamp(low, high)

    chunk = policy.predict_chunk(
        obs, constraints=ChunkConstraints(project=project), generator=generators(0, 1)
    )
    assert (chunk.actions >= low - 1e-3).all() and (chunk.actions <= high + 1e-3).all()
    assert all(shape[0] == 2 and shape[-2:] == (16, 2) for shape in shapes)
    if kind in ENERGIES:  # the energy belongs to the projected chunk
        assert len(shapes) > 1
        energy = policy.energies(obs, chunk.actions.unsqueeze(1))[:, 0]
        torch.testing.assert_close(energy, chunk.energy, atol=1e-3, rtol=1e-3)
    prefix = (LOW + HIGH).div(2).expand(2, 3, 2)
    constrained = policy.predict_chunk(
        obs, constraints=ChunkConstraints(prefix=prefix, project=project)
    ).actions
    assert torch.equal(constrained[:, :3], prefix) and (constrained >= low - 1e-3).all()


@ALL_KINDS
def test_warm_start_needs_fewer_steps_and_stays_close(kind):
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
    late_start = policy.predict_chunk(
        obs, constraints=ChunkConstraints(warm_start=cold.actions), generator=generators(2, 3)
    ).actions
    assert (late_start - cold.actions).abs().mean() < (warm.actions - cold.actions).abs().mean()


@ALL_KINDS
def test_prefix_may_be_full_or_empty(kind):
    policy, obs = build(kind), observe(1)
    full_prefix = (LOW + HIGH).div(2).expand(1, 16, 2)
    assert torch.equal(
        policy.predict_chunk(obs, constraints=ChunkConstraints(prefix=full_prefix)).actions,
        full_prefix,
    )
    empty_prefix = policy.predict_chunk(
        obs, constraints=ChunkConstraints(prefix=full_prefix[:, :0]), generator=generators(0)
    ).actions
    unconstrained = policy.predict_chunk(obs, generator=generators(0)).actions
    # An empty prefix draws no noise, so both predictions start from the same noise.
    torch.testing.assert_close(empty_prefix, unconstrained)


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
