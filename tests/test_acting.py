"""`Policy.act` and `evaluate`: a policy in the user's own control loop."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

import ebt_policy.envs  # noqa: F401  registers the environments
from ebt_policy.policies import evaluate, load_policy


@pytest.fixture
def policy(tiny_run):
    return load_policy(tiny_run)


def test_act_returns_the_actions_of_the_predicted_chunks(policy):
    shape = policy.shape
    observations = np.random.default_rng(0).random((20, shape.obs_dim)) * 512
    policy.reset(seed=3)
    actions = [policy.act(observation) for observation in observations]
    generator = torch.Generator().manual_seed(3)
    expected = []
    for start in range(0, 20, shape.n_action_steps):
        past = [max(0, start - i) for i in reversed(range(shape.n_obs_steps))]
        obs = {"obs": torch.tensor(observations[past], dtype=torch.float32)[None]}
        chunk = policy.predict_chunk(obs, generator=generator).actions[0]
        first = shape.n_obs_steps - 1
        expected += list(chunk[first : first + shape.n_action_steps].numpy())
    np.testing.assert_array_equal(actions, expected[:20])


def test_act_serves_several_environments_at_once(policy):
    policy.reset(seed=0)
    assert policy.act(np.zeros((3, policy.shape.obs_dim))).shape == (3, policy.shape.action_dim)
    with pytest.raises(ValueError, match=r"changed from 3 to 1; call policy\.reset"):
        policy.act(np.zeros(policy.shape.obs_dim))
    policy.reset()
    assert policy.act(np.zeros(policy.shape.obs_dim)).shape == (policy.shape.action_dim,)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(7), r"must be \(20,\) or \(N, 20\)"),
        (np.zeros((2, 3, 20)), r"got \(2, 3, 20\)"),
        ({"state": np.zeros(20)}, "has no obs; this policy reads obs"),
        (np.full(20, np.nan), "NaN or Inf"),
    ],
)
def test_invalid_observation_error_states_what_is_expected(observation, message, policy):
    with pytest.raises(ValueError, match=message):
        policy.act(observation)


def test_evaluate_runs_seeded_episodes(policy):
    env = gymnasium.make("ebt_policy/PushT-v0", max_episode_steps=12)
    first, second = (evaluate(policy, env, episodes=2, seed=5) for _ in range(2))
    assert [result.seed for result in first] == [5, 6]
    assert [result.length for result in first] == [12, 12]
    assert [result.score for result in first] == [result.score for result in second]
