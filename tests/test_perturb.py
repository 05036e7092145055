"""Perturbations have their strength, depend on the seed alone and keep scenes valid."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.perturbations import (
    EVENT_STEP_RANGE,
    Perturbation,
    PerturbationWrapper,
    perturbation_kinds,
)
from ebt_policy.envs.push_t_env import AGENT_RADIUS, EDGE_MARGIN, WORKSPACE_SIZE, PushTEnv

PUSH_T = "ebt_policy/PushT-v0"
CENTRE = np.array([256.0, 256.0])
ROUNDING = 1e-6  # px, of the simulator's positions


def make_env(kind: str, strength: float) -> gymnasium.Env:
    return EnvSpec(PUSH_T, 300, perturbation=Perturbation(kind, strength)).make()


def play_still(env: gymnasium.Env, seed: int, steps: int = EVENT_STEP_RANGE[1] + 2):
    """Return observations, states and event steps while the agent stands still."""
    obs, info = env.reset(seed=seed)
    observations, states, events = [obs], [info["state"]], [-1] if info.get("perturbed") else []
    for step in range(steps):
        obs, _, _, _, info = env.step(states[0][:2])
        observations.append(obs)
        states.append(info["state"])
        events += [step] if info.get("perturbed") else []
    return np.array(observations), np.array(states), events


def centre_of_mass(env: PushTEnv, state: np.ndarray) -> np.ndarray:
    """Return the block's centre of mass."""
    return state[2:4] + np.array(env.block.center_of_gravity.rotated(float(state[4])))


@pytest.mark.parametrize("kind", [k for k in PushTEnv.perturbations])
def test_zero_strength_changes_nothing(kind):
    plain, _, _ = play_still(EnvSpec(PUSH_T, 300).make(), 7)
    perturbed, _, events = play_still(make_env(kind, 0), 7)
    np.testing.assert_array_equal(perturbed, plain)
    assert len(events) == (kind not in ("action_noise", "delay"))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strength", [30.0, 90.0])
@pytest.mark.parametrize("kind", ["agent", "kick", "turn"])
def test_perturbations_have_the_given_strength(kind, strength, seed):
    _, states, events = play_still(make_env(kind, strength), seed)
    (event,) = events
    assert EVENT_STEP_RANGE[0] <= event <= EVENT_STEP_RANGE[1]
    env = PushTEnv()
    env.reset(options={"state": states[event]})
    env.perturb(kind, strength, np.random.default_rng(seed))
    before, after = states[event], env.get_state()
    if kind == "agent":
        assert np.linalg.norm(after[:2] - before[:2]) == pytest.approx(strength)
        np.testing.assert_allclose(after[2:], before[2:], atol=1e-9)
    elif kind == "kick":
        assert np.linalg.norm(after[2:4] - before[2:4]) == pytest.approx(strength)
    else:
        turned = (after[4] - before[4] + np.pi) % (2 * np.pi) - np.pi
        assert abs(turned) == pytest.approx(np.deg2rad(strength))
        np.testing.assert_allclose(
            centre_of_mass(env, after), centre_of_mass(env, before), atol=1e-6
        )
    assert not env._agent_overlaps_block(after)


@settings(max_examples=60, deadline=None, derandomize=True)
@example(kind="start", strength=82.0, seed=20763)
@given(
    kind=st.sampled_from(["agent", "kick", "turn", "start"]),
    strength=st.floats(0, 400),
    seed=st.integers(0, 2**31),
)
def test_perturbed_scenes_are_valid(kind, strength, seed):
    env = PushTEnv()
    env.reset(seed=seed)
    before = env.get_state()
    obs, info = env.perturb(kind, strength, np.random.default_rng(seed))
    after = info["state"]
    np.testing.assert_array_equal(obs, env.get_obs())
    if (after[:2] != before[:2]).any():
        assert abs(after[:2] - CENTRE).max() <= WORKSPACE_SIZE / 2 - AGENT_RADIUS + ROUNDING
    if kind in ("kick", "start") and (after[2:4] != before[2:4]).any():
        assert abs(after[2:4] - CENTRE).max() <= WORKSPACE_SIZE / 2 - EDGE_MARGIN + ROUNDING


def test_a_shifted_start_is_farther_from_the_centre():
    for seed in range(8):
        _, (plain, *_), _ = play_still(EnvSpec(PUSH_T, 300).make(), seed, steps=1)
        _, (shifted, *_), events = play_still(make_env("start", 60), seed, steps=1)
        assert events == [-1]
        plain_distance, shifted_distance = (
            np.linalg.norm(s[2:4] - CENTRE) for s in (plain, shifted)
        )
        assert shifted_distance > plain_distance
        assert abs(shifted[2:4] - CENTRE).max() <= WORKSPACE_SIZE / 2 - EDGE_MARGIN + ROUNDING


def test_perturbation_depends_only_on_the_seed():
    env = make_env("kick", 50)
    first, again, other = play_still(env, 3), play_still(env, 3), play_still(env, 4)
    np.testing.assert_array_equal(first[1], again[1])
    assert first[2] == again[2]
    assert not np.array_equal(first[1], other[1])
    stronger = play_still(make_env("kick", 100), 3)
    assert stronger[2] == first[2]  # the event does not depend on the strength


def test_delay_and_freeze_return_old_observations():
    truth, _, _ = play_still(EnvSpec(PUSH_T, 300).make(), 5)
    late, _, _ = play_still(make_env("delay", 3), 5)
    np.testing.assert_array_equal(late[3:], truth[:-3])
    np.testing.assert_array_equal(late[:3], truth[:1].repeat(3, axis=0))
    frozen, _, (event,) = play_still(make_env("freeze", 4), 5)
    for step in range(len(truth)):
        source_step = event if event < step <= event + 4 else step
        np.testing.assert_array_equal(frozen[step], truth[source_step])


def test_action_noise_is_in_the_action_space_and_deterministic():
    env = make_env("action_noise", 20)
    truth, noisy = play_still(EnvSpec(PUSH_T, 300).make(), 5), play_still(env, 5)
    assert not np.array_equal(truth[1], noisy[1]) and noisy[2] == []
    np.testing.assert_array_equal(noisy[1], play_still(env, 5)[1])
    assert np.isfinite(play_still(make_env("action_noise", 1e4), 5)[0]).all()


@pytest.mark.parametrize(
    ("kind", "strength"), [("kick", -1), ("kick", float("nan")), ("delay", 1.5), ("freeze", 0.2)]
)
def test_invalid_strengths_are_refused(kind, strength):
    with pytest.raises(ValueError, match=f"the strength of {kind}"):
        Perturbation(kind, strength)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="no perturbation 'wind'; it has agent, kick"):
        make_env("wind", 1)
    with pytest.raises(ValueError, match="it has none"):
        PerturbationWrapper(gymnasium.make("CartPole-v1"), Perturbation("kick", 1))
    assert perturbation_kinds(gymnasium.make("CartPole-v1")) == {}
    env = PushTEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="cannot be perturbed by 'delay'"):
        env.perturb("delay", 1, np.random.default_rng(0))
