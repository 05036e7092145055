"""Scripted experts of the robosuite tasks: success, seeds and recovery."""

from __future__ import annotations

import importlib.util
from functools import cache

import numpy as np
import pytest

if importlib.util.find_spec("robosuite") is None:
    pytest.skip("needs robosuite", allow_module_level=True)

# This import selects the rendering backend, so it must precede robosuite.
from ebt_policy.envs.robosuite_env import RobosuiteEnv
from ebt_policy.envs.robosuite_experts import EXPERTS

pytestmark = [pytest.mark.robomimic, pytest.mark.slow]
JOINTS = {"Lift": "cube_joint0", "Can": "Can_joint0", "Square": "SquareNut_joint0"}


@cache
def environment(name):
    return RobosuiteEnv(name).sim_env


def play(name, seed, limit=400, disturb=None):
    """Return actions (n, 7) until success or the limit, and whether the expert succeeded."""
    env = environment(name)
    np.random.seed(seed)
    env.reset()
    expert = EXPERTS[name](env, np.random.default_rng(seed))
    actions = []
    for step in range(limit):
        action = expert()
        assert action.shape == (7,) and action.dtype == np.float64
        assert np.isfinite(action).all() and np.abs(action).max() <= 1
        if disturb is not None:
            disturb(env, expert, step, action)
        actions.append(action)
        env.step(action)
        if env._check_success():
            return np.array(actions), True
    return np.array(actions), False


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_expert_solves_the_task(name, seed):
    assert play(name, seed)[1]


@pytest.mark.parametrize("name", EXPERTS)
def test_expert_solves_the_task_with_joint_positions(name):
    env = RobosuiteEnv(name, actions="joints")
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs) and env.action_space.shape == (8,)
    act, solved = env.expert(np.random.default_rng(0)), False
    for _ in range(400):
        np.testing.assert_allclose(env.hold_action()[:7], obs[:7], atol=1e-5)
        action = act()
        assert np.abs(action[:7] - obs[:7]).max() < 0.5  # No joint turns to another solution.
        obs, _, solved, *_ = env.step(action.astype(np.float32))
        if solved:
            break
    assert solved


@pytest.mark.parametrize("actions", ["absolute", "joints"])
def test_two_arms_hold_their_own_grippers(actions):
    env = RobosuiteEnv("Transport", actions=actions)
    env.reset(seed=0)
    goals = env.hold_action().reshape(2, -1)
    assert goals.shape == (2, 8 if actions == "joints" else 10) and (goals[:, -1] == -1).all()
    goals[0, -1] = 1.0
    env.step(goals.ravel().astype(np.float32))
    assert env.hold_action().reshape(2, -1)[:, -1].tolist() == [1.0, -1.0]


def test_a_gripper_with_joint_goals_is_pushed_away():
    env = RobosuiteEnv("Lift", actions="joints")
    env.reset(seed=0)
    before = env.robosuite_observations()["robot0_eef_pos"]
    env._push_gripper(np.array([0.06, 0.08, 0.0]))
    shift = env.robosuite_observations()["robot0_eef_pos"] - before
    assert 0.1 <= np.linalg.norm(shift) < 0.13 and abs(shift[2]) < 0.02


@pytest.mark.parametrize("name", EXPERTS)
def test_expert_actions_depend_only_on_the_seed(name):
    first, again = play(name, 3, limit=30)[0], play(name, 3, limit=30)[0]
    np.testing.assert_array_equal(first, again)


def test_experts_of_different_seeds_differ():
    env = environment("Lift")
    np.random.seed(0)
    env.reset()
    expert, other_expert = (EXPERTS["Lift"](env, np.random.default_rng(seed)) for seed in (0, 1))
    assert expert.speed != other_expert.speed and not np.allclose(
        expert(), other_expert(), atol=0.01
    )


@pytest.mark.parametrize("name", EXPERTS)
def test_expert_follows_a_moved_object(name):
    joint, env = JOINTS[name], environment(name)
    np.random.seed(1000)
    env.reset()
    elsewhere = env.sim.data.get_joint_qpos(joint).copy()
    moved = []

    def move(env, expert, step, action):
        if not moved and expert.is_held():
            env.sim.data.set_joint_qpos(joint, elsewhere)
            env.sim.data.set_joint_qvel(joint, np.zeros(6))
            env.sim.forward()
            moved.append(step)

    assert play(name, 0, disturb=move)[1]
    assert moved


@pytest.mark.parametrize("name", EXPERTS)
def test_expert_regrasps_a_dropped_object(name):
    forced = []

    def open_fingers(env, expert, step, action):
        if len(forced) < 15 and (forced or expert.is_held()):
            action[6] = -1.0
            forced.append(step)

    actions, solved = play(name, 0, disturb=open_fingers)
    assert solved
    assert (actions[forced[-1] :, 6] > 0).any()
