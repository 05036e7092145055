"""The replay buffer: newest rows, samples, storage, and training from replayed rows."""

from __future__ import annotations

import io
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.energy import ReplayBuffer
from ebt_policy.energy.objectives import S2
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.policy_shape import PolicyShape


def rows(numbers):
    """Return rows whose tensors hold the number of the row."""
    x = torch.tensor(list(numbers), dtype=torch.float32)
    return {"obs": x.view(-1, 1), "candidate": -x.view(-1, 1, 1).expand(-1, 2, 3)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(capacity=st.integers(1, 7), sizes=st.lists(st.integers(1, 9), max_size=6))
def test_buffer_keeps_the_newest_rows(capacity, sizes):
    buffer, total = ReplayBuffer(capacity), 0
    for size in sizes:
        buffer.add(rows(range(total, total + size)))
        total += size
        assert len(buffer) == min(total, capacity)
    sample = buffer.sample(99)
    if sizes:
        newest = list(range(total - len(buffer), total))
        assert sorted(sample["obs"].flatten().tolist()) == newest
        assert torch.equal(sample["candidate"], rows(sample["obs"].flatten())["candidate"])
    else:
        assert sample == {}


def test_samples_are_distinct_uniform_and_repeatable():
    buffer = ReplayBuffer(10)
    buffer.add(rows(range(6)))
    counts = torch.zeros(6)
    for _ in range(600):
        sampled = buffer.sample(3)["obs"].flatten().long()
        assert len(sampled.unique()) == 3
        counts[sampled] += 1
    assert counts.min() > 230 and counts.max() < 370  # 300 expected, standard deviation 12

    def seeded():
        return buffer.sample(3, torch.Generator().manual_seed(5))["obs"]

    assert torch.equal(seeded(), seeded())


def test_rows_are_copies_without_gradients():
    buffer, source = ReplayBuffer(4), rows(range(3))
    source["obs"].requires_grad_()
    buffer.add(source)
    with torch.no_grad():
        source["obs"].fill_(99.0)
    sample = buffer.sample(3)
    assert sample["obs"].max() == 2 and not sample["obs"].requires_grad
    sample["obs"].fill_(99.0)
    assert buffer.sample(3)["obs"].max() == 2


@pytest.mark.parametrize("count", [2, 11])
def test_state_is_restored_from_a_file(count):
    buffer, file = ReplayBuffer(4), io.BytesIO()
    buffer.add(rows(range(count)))
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    restored = ReplayBuffer(4)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for replay in (buffer, restored):
        replay.add(rows([100.0]))
    a, b = (x.sample(4, torch.Generator().manual_seed(0)) for x in (buffer, restored))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(restored) == len(buffer)


def test_loading_does_not_share_memory_and_an_empty_buffer_can_be_stored():
    buffer, other = ReplayBuffer(4), ReplayBuffer(4)
    buffer.load_state_dict(ReplayBuffer(4).state_dict())
    assert len(buffer) == 0
    buffer.add(rows(range(2)))
    other.load_state_dict(buffer.state_dict())
    other.add(rows([7, 8, 9]))
    assert sorted(buffer.sample(4)["obs"].flatten().tolist()) == [0, 1]


def test_invalid_input_is_refused():
    with pytest.raises(ValueError, match="capacity of at least 1"):
        ReplayBuffer(0)
    buffer = ReplayBuffer(4)
    with pytest.raises(ValueError, match="equal length"):
        buffer.add({"obs": torch.zeros(2, 1), "action": torch.zeros(3, 1)})
    with pytest.raises(ValueError, match="equal length"):
        buffer.add({})
    buffer.add(rows(range(2)))
    with pytest.raises(ValueError, match="the buffer holds"):
        buffer.add({"obs": torch.zeros(2, 1)})
    with pytest.raises(ValueError, match="does not have 5 rows"):
        ReplayBuffer(5).load_state_dict(buffer.state_dict())


# -- in training ----------------------------------------------------------------------------------


def policy(**objective):
    torch.manual_seed(0)
    limits = {key: torch.tensor([[-1.0, -1.0], [1.0, 1.0]]) for key in ("obs", "action")}
    shape = PolicyShape(obs_dim=2, action_dim=2, horizon=4, n_obs_steps=2, n_action_steps=2)
    return EnergyPolicy(
        shape,
        Normalizer.fit(limits),
        TransformerConfig(8, 2, 1),
        actions_per_token=2,
        inference={},
        objective=partial(S2, **{"replay": 6, **objective}),
    )


def train(policy, batch):
    noisy_batch = policy.with_noise(policy.before_step(batch))
    _, metrics = policy(noisy_batch)
    if "candidate" in metrics:
        rows = {
            "obs": noisy_batch["obs"],
            "action": noisy_batch["action"],
            "candidate": metrics["candidate"],
        }
        policy.after_step(rows)
    return noisy_batch


def test_s2_starts_from_replayed_rows():
    p, batch = policy(), {"obs": torch.rand(4, 2, 2), "action": torch.rand(4, 4, 2)}
    assert len(train(p, batch)["obs"]) == 4
    assert p.objective.replay is not None and len(p.objective.replay) == 4
    stored = p.objective.replay.sample(9)
    new = {"obs": -torch.rand(4, 2, 2), "action": -torch.rand(4, 4, 2)}
    assert len(p.with_noise(new)["obs"]) == 4  # held-out windows are not mixed with replayed ones
    second = p.with_noise(p.before_step(new))
    assert all(len(second[key]) == 6 for key in ("obs", "action"))  # half a batch is replayed
    assert all(len(v) == 6 for v in second["noise"].values() if isinstance(v, torch.Tensor))
    for row in (4, 5):
        same = [i for i in range(4) if torch.equal(stored["obs"][i], second["obs"][row])]
        assert len(same) == 1
        assert torch.equal(stored["action"][same[0]], second["action"][row])
        assert torch.equal(stored["candidate"][same[0]], second["noise"]["init"][row])
    assert not any(torch.equal(second["noise"]["init"][r], c)
                   for r in range(4) for c in stored["candidate"])  # fmt: skip


def test_replayed_rows_are_stored_again_and_restored():
    p, batch = policy(), {"obs": torch.rand(4, 2, 2), "action": torch.rand(4, 4, 2)}
    train(p, batch)
    train(p, batch)
    assert p.objective.replay is not None and len(p.objective.replay) == 6
    other = policy()
    other.load_extra_training_state(p.extra_training_state())
    torch.manual_seed(3)
    expected = p.with_noise(p.before_step(batch))
    torch.manual_seed(3)
    actual = other.with_noise(other.before_step(batch))
    assert torch.equal(expected["noise"]["init"], actual["noise"]["init"])


def test_no_replay_without_a_buffer():
    p, batch = policy(replay=0), {"obs": torch.rand(4, 2, 2), "action": torch.rand(4, 4, 2)}
    train(p, batch)
    assert len(p.with_noise(batch)["obs"]) == 4 and p.extra_training_state() == {}
