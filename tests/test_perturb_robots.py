"""Perturbations of simulated robots: displaced objects and displaced grippers."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.perturbations import Perturbation

WORLDS = {
    "lift": ("Lift-v0", "robosuite", "robomimic"),
    "peg": ("MetaWorld-peg-insert-side-v3", "metaworld", "metaworld"),
}
ROBOTS = [
    pytest.param(
        name,
        marks=[
            getattr(pytest.mark, extra),
            pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}"),
        ],
    )
    for name, (_, module, extra) in WORLDS.items()
]


def spec(name: str, kind: str, strength: float) -> EnvSpec:
    return EnvSpec(
        f"ebt_policy/{WORLDS[name][0]}",
        500,
        perturbation=Perturbation(kind, strength),
    )


def play(name: str, kind: str, strength: float, seed: int):
    """Return states, event steps, number of retries and success of an expert's episode."""
    env = spec(name, kind, strength).make()
    _, info = env.reset(seed=seed)
    expert = env.unwrapped.expert(np.random.default_rng(seed))  # type: ignore[attr-defined]
    states, events, over, step = [info["state"]], [], False, 0
    solved = False
    while not over:
        _, _, solved, late, info = env.step(expert())
        states.append(info["state"])
        events += [step] if info.get("perturbed") else []
        step, over = step + 1, solved or late
    env.close()
    return np.stack(states), events, info["retries"], solved


@pytest.mark.parametrize("name", ROBOTS)
def test_grasped_object_is_displaced_once(name):
    states, events, retries, _ = play(name, "object", 12, seed=0)
    assert len(events) == 1 and retries >= 1
    again, *_ = play(name, "object", 12, seed=0)
    np.testing.assert_array_equal(states, again)  # depends on the seed alone


@pytest.mark.parametrize("name", ROBOTS)
@pytest.mark.parametrize("kind", ["gripper", "freeze"])
def test_random_events_happen_before_the_task_can_be_solved(name, kind):
    env = spec(name, kind, 0).make()
    for seed in range(40):
        env.reset(seed=seed)
        assert 10 <= env.get_wrapper_attr("_event_step") <= 30
    env.close()


@pytest.mark.parametrize("name", ROBOTS)
def test_strength_is_the_displacement(name):
    env = spec(name, "gripper", 12).make()
    scene = env.unwrapped
    obs, _ = env.reset(seed=1)
    moved, _ = scene.perturb("gripper", 12, np.random.default_rng(0))  # type: ignore[attr-defined]
    assert 9 < 100 * np.linalg.norm(moved[:3] - obs[:3]) < 18
    assert not scene.holding()  # type: ignore[attr-defined]
    position = scene._object_position()  # type: ignore[attr-defined]
    scene.perturb("object", 12, np.random.default_rng(0))  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.linalg.norm(scene._object_position() - position), 0.12)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="cannot be perturbed by 'kick'"):
        scene.perturb("kick", 1, np.random.default_rng(0))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no perturbation 'kick'; it has delay, freeze, object"):
        spec(name, "kick", 12).make()
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ROBOTS)
def test_experts_mostly_recover(name):
    solved = [play(name, "object", 5, seed)[-1] for seed in range(6)]
    assert np.mean(solved) >= 0.5


def test_missing_simulator_error_names_the_extra(monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'robosuite'", name="robosuite.controllers")

    monkeypatch.setattr("ebt_policy.envs.env_spec.gymnasium.make", missing)
    with pytest.raises(ValueError, match=r"needs robosuite, .* 'ebt_policy\[robomimic\]'"):
        EnvSpec("ebt_policy/Lift-v0", 400).check(videos=False)
