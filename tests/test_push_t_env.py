"""The Push-T environment: resets, dynamics, rewards, observations and frames."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import ebt_policy.envs  # noqa: F401  registers the environment
from ebt_policy.envs.push_t_env import PushTEnv
from ebt_policy.envs.push_t_geometry import observation, seeded_state

GOAL = np.array([100.0, 100.0, 256.0, 256.0, np.pi / 4])  # the block on the goal
DATA = os.environ.get("EBT_POLICY_DATA")


@pytest.fixture(scope="module")
def env():
    return PushTEnv()


def play(env, actions, **reset):
    """Return states (n + 1, 5), rewards (n,) and coverages (n,) under `actions`."""
    _, info = env.reset(**reset)
    states, rewards, coverages = [info["state"]], [], []
    for action in actions:
        _, reward, _, _, info = env.step(action)
        states.append(info["state"])
        rewards.append(reward)
        coverages.append(info["coverage"])
    return np.array(states), np.array(rewards), np.array(coverages)


def wander(seed, n=60):
    """Return random actions (n, 2), each repeated for four steps."""
    return np.random.default_rng(seed).uniform(0, 512, (n // 4, 2)).repeat(4, axis=0)


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized")  # px, as in gym-pusht
def test_env_follows_the_gymnasium_interface():
    env = gymnasium.make("ebt_policy/PushT-v0", render_mode="rgb_array")
    assert env.spec is not None and env.spec.max_episode_steps == 300
    check_env(env.unwrapped)


def test_registration_imports_no_simulator():
    code = (
        "import sys, ebt_policy.envs; assert not {'pygame', 'pymunk', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=with_path())


def with_path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}


@pytest.mark.parametrize("seed", [0, 7, 100_000, 2**32 - 1])
def test_initial_values_equal_diffusion_policy(seed):
    rs = np.random.RandomState(seed)
    expected = [rs.randint(50, 450), rs.randint(50, 450), rs.randint(100, 400)]
    expected += [rs.randint(100, 400), rs.randn() * 2 * np.pi - np.pi]
    np.testing.assert_array_equal(seeded_state(seed), expected)


def test_seeded_reset_keeps_the_legacy_order(env):
    """The block is placed and then turned about its centre of mass, (0, 45) px in its frame."""
    for seed in range(5):
        values = seeded_state(seed)
        _, info = env.reset(seed=seed)
        cos, sin = np.cos(values[4]), np.sin(values[4])
        shifted = values[2:4] + [45 * sin, 45 - 45 * cos]
        np.testing.assert_allclose(info["state"][:2], values[:2])
        # The simulator separates a block that overlaps the agent or a wall.
        assert np.abs(info["state"][2:4] - shifted).max() < 5
        assert env.observation_space.contains(env.get_obs())


def test_unseeded_resets_differ_but_follow_the_generator(env):
    env.reset(seed=3)
    first = [env.reset()[1]["state"] for _ in range(3)]
    env.reset(seed=3)
    second = [env.reset()[1]["state"] for _ in range(3)]
    np.testing.assert_array_equal(first, second)
    assert len({tuple(state) for state in first}) == 3


def test_reset_uses_the_given_state(env):
    state = np.array([10.5, 500.0, 130.25, 310.0, 5.5])
    obs, info = env.reset(seed=0, options={"state": state})
    np.testing.assert_allclose(info["state"], state, atol=1e-9)
    np.testing.assert_array_equal(obs, observation(info["state"]))
    assert obs.shape == (20,) and obs.dtype == np.float32
    np.testing.assert_allclose(obs[18:], state[:2])


@pytest.mark.parametrize(
    "options",
    [
        {"state": [1, 2, 3]},
        {"state": [np.nan, 0, 100, 100, 0]},
        {"state": [600, 0, 100, 100, 0]},
        {"state": [0, 0, -1, 100, 0]},
        {"stat": [0, 0, 100, 100, 0]},
    ],
)
def test_impossible_reset_options_are_refused(env, options):
    with pytest.raises(ValueError, match=r"state|must start inside"):
        env.reset(options=options)


@pytest.mark.parametrize("action", [[np.nan, 0], [0, np.inf], [1, 2, 3], 5.0, [[1, 2]]])
def test_impossible_actions_are_refused(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="two finite numbers"):
        env.step(action)


def test_unknown_render_mode_is_refused():
    with pytest.raises(ValueError, match="render_mode"):
        PushTEnv(render_mode="human")


def test_same_seed_gives_the_same_trajectory(env):
    actions = wander(1)
    first, _, _ = play(env, actions, seed=5)
    play(env, wander(2), seed=6)  # earlier episodes have no effect
    second, _, _ = play(env, actions, seed=5)
    other, _, _ = play(PushTEnv(), actions, seed=5)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, other)


def test_actions_outside_the_workspace_are_clipped(env):
    outside, _, _ = play(env, [[-300, 900]] * 5, seed=0)
    border, _, _ = play(env, [[0, 512]] * 5, seed=0)
    np.testing.assert_array_equal(outside, border)


def test_reward_is_clipped_coverage_and_full_coverage_ends_the_episode(env):
    _, info = env.reset(options={"state": GOAL})
    assert info["coverage"] == pytest.approx(1, abs=1e-6) and info["is_success"] is False
    _, reward, terminated, truncated, info = env.step(GOAL[:2])
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)

    _, rewards, coverages = play(env, wander(3), options={"state": GOAL + [0, 0, 20, 5, 0.2]})
    assert 0 < coverages[0] < 0.95
    np.testing.assert_allclose(rewards, np.clip(coverages / 0.95, 0, 1))

    almost_goal = GOAL + [0, 0, 3, 0, 0]  # less than 95 % covered: not solved
    env.reset(options={"state": almost_goal})
    _, reward, terminated, _, info = env.step(almost_goal[:2])
    assert not terminated and reward < 1 and info["coverage"] < 0.95


def test_time_limit_truncates_the_episode():
    env = gymnasium.make("ebt_policy/PushT-v0")
    env.reset(options={"state": [20, 20, 256, 400, 0]})
    ends = [env.step(np.array([20, 20], dtype=np.float32))[2:4] for _ in range(300)]
    assert ends[-1] == (False, True) and not any(t or u for t, u in ends[:-1])


def test_dynamics_equal_gym_pusht(env):
    from gym_pusht.envs.pusht import PushTEnv as Original

    original, actions = Original(), wander(4)
    values = seeded_state(11)
    states, rewards, _ = play(env, actions, seed=11)
    state, _ = original.reset(options={"reset_to_state": values})
    np.testing.assert_array_equal(state, states[0])
    for i, action in enumerate(actions):
        state, reward, *_ = original.step(action)
        np.testing.assert_array_equal(state, states[i + 1])
        assert reward == rewards[i]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), targets=st.integers(0, 2**16))
def test_observations_stay_inside_their_bounds(env, seed, targets):
    """This includes blocks that are pushed through a wall."""
    _, info = env.reset(seed=seed)
    rng = np.random.default_rng(targets)
    for _ in range(8):
        target = info["state"][2:4] + rng.uniform(-300, 300, 2)
        for _ in range(6):
            obs, _, _, _, info = env.step(target)
            assert env.observation_space.contains(obs)


def test_frames_show_plan_and_block():
    env = PushTEnv(render_mode="rgb_array", width=128, height=96)
    env.reset(seed=0)
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    assert frame.shape == (96, 128, 3) and frame.dtype == np.uint8
    with_plan = env.draw_plan(frame.copy(), np.array([[0, 0], [256, 256], [512, 512]]))
    assert (with_plan != frame).any()
    np.testing.assert_array_equal(env.draw_plan(frame.copy(), np.empty((0, 2))), frame)
    assert (PushTEnv(render_mode="rgb_array").reset(seed=0)[0] == env.reset(seed=0)[0]).all()


def test_mirrored_episode_is_valid_dynamics(env):
    from ebt_policy.data.push_t import load_push_t, mirrored

    episodes, _ = load_push_t(demos="expert")
    image = mirrored(episodes)
    for i in (0, 1, 2):
        demo = image.episode(i)
        states, _, coverages = play(env, demo["action"], options={"state": demo["state"][0]})
        np.testing.assert_allclose(states[:-1, :4], demo["state"][:, :4], atol=2)
        np.testing.assert_allclose(
            states[:-1, 4] % (2 * np.pi), demo["state"][:, 4] % (2 * np.pi), atol=0.02
        )
        assert coverages.max() > 0.95


@pytest.mark.skipif(not DATA, reason="EBT_POLICY_DATA is unset")
def test_replayed_human_demonstration_is_reproduced(env):
    from ebt_policy.data.episode_store import read_episodes

    path = Path(str(DATA)) / "pusht" / "pusht_cchi_v7_replay.zarr.zip"
    demos = read_episodes(path, keys=["state", "action"])
    for i in (0, 51, 57):
        demo = demos.episode(i)
        states, _, coverages = play(env, demo["action"], options={"state": demo["state"][0]})
        np.testing.assert_allclose(states[:-1, :4], demo["state"][:, :4], atol=0.05)
        np.testing.assert_allclose(states[:-1, 4], demo["state"][:, 4], atol=1e-3)
        assert coverages.max() > 0.85
