"""The MuJoCo environments: spaces, seeds, states, frames, experts and errors, in each simulator."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import cache

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ebt_policy.data.render_cache import rendered_observations
from ebt_policy.envs import rendering
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.errors import RenderingError
from ebt_policy.envs.task_names import METAWORLD, ROBOSUITE


def requires_extra(extra: str, module: str):
    """Return marks for tests of an extra, which skip them if it is not installed."""
    absent = importlib.util.find_spec(module) is None
    return [getattr(pytest.mark, extra), pytest.mark.skipif(absent, reason=f"needs extra {extra}")]


robosuite = requires_extra("robomimic", "robosuite")
metaworld = requires_extra("metaworld", "metaworld")
adroit = requires_extra("adroit", "gymnasium_robotics")
SAMPLE = [
    pytest.param("Lift-v0", marks=robosuite),
    *(
        pytest.param(f"{scene}-v0", marks=[*robosuite, pytest.mark.slow])  # takes seconds
        for scene in ROBOSUITE
        if scene != "Lift"
    ),
    *(pytest.param(f"MetaWorld-{s}-v3", marks=metaworld) for s in ("reach", "door-open", "hammer")),
    pytest.param("AdroitDoor-v0", marks=adroit),
]
ENVIRONMENTS = [
    pytest.param("Lift-v0", marks=robosuite),
    pytest.param("MetaWorld-door-open-v3", marks=metaworld),
    pytest.param("AdroitDoor-v0", marks=adroit),
]


@cache
def cached_env(name: str) -> gymnasium.Env:
    """Return an environment that is created once; its episodes must not depend on earlier ones."""
    return gymnasium.make(f"ebt_policy/{name}")


@cache
def can_render() -> bool:
    return rendering.choose_backend() != rendering.NO_BACKEND


def test_importing_the_package_loads_no_simulator():
    code = (
        "import sys, ebt_policy.envs; "
        "print([m for m in ('mujoco', 'robosuite', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert sum(name.startswith("ebt_policy/MetaWorld-") for name in gymnasium.registry) == 50


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.filterwarnings("ignore::UserWarning")  # about boxes without limits
def test_gymnasium_accepts_the_environment(name):
    check_env(cached_env(name).unwrapped, skip_render_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("scene", METAWORLD)
@pytest.mark.metaworld
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_metaworld_task_is_registered_and_solved_by_its_expert(scene):
    pytest.importorskip("metaworld")
    env = gymnasium.make(f"ebt_policy/MetaWorld-{scene}-v3")
    check_env(env.unwrapped, skip_render_check=True)
    assert any(solved_by_expert(env, seed) for seed in range(3))
    env.close()


@pytest.mark.metaworld
def test_task_names_equal_metaworld():
    env_dict = pytest.importorskip("metaworld.env_dict")
    assert sorted(f"{scene}-v3" for scene in METAWORLD) == sorted(env_dict.ALL_V3_ENVIRONMENTS)


def solved_by_expert(env: gymnasium.Env, seed: int) -> bool:
    env.reset(seed=seed)
    expert = env.unwrapped.expert(np.random.default_rng(seed))  # type: ignore[attr-defined]
    over = False
    while not over:
        _, reward, solved, late, info = env.step(expert())
        over = solved or late
        assert info["is_success"] == solved and (reward == 1.0) == solved
    return solved


def play(env: gymnasium.Env, seed: int, steps: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return the states and observations of an episode with random actions."""
    rng = np.random.default_rng(7)
    obs, info = env.reset(seed=seed)
    rows = [(info["state"], obs)]
    for _ in range(steps):
        obs, _, _, _, info = env.step(rng.uniform(-0.6, 0.6, env.action_space.shape or ()))
        rows.append((info["state"], obs))
    states, observations = zip(*rows, strict=True)
    return np.stack(states), np.stack(observations)


@pytest.mark.parametrize("name", SAMPLE)
def test_episode_depends_only_on_its_seed(name):
    env = cached_env(name)
    first, _ = play(env, 3)
    other, _ = play(env, 4)
    again, _ = play(env, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    fresh = gymnasium.make(f"ebt_policy/{name}")  # nor on the environment object
    np.testing.assert_array_equal(play(fresh, 3)[0], first)
    fresh.close()


@pytest.mark.parametrize("name", SAMPLE)
def test_state_determines_the_observation(name):
    env = cached_env(name)
    states, observations = play(env, 3)
    for state, expected in list(zip(states, observations, strict=True))[::4]:
        obs, info = env.reset(seed=11, options={"state": state})
        np.testing.assert_allclose(obs, expected, atol=2e-6)
        np.testing.assert_allclose(info["state"], state, atol=1e-9)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_invalid_input_is_a_one_line_error(name):
    env = cached_env(name)
    _, info = env.reset(seed=0)
    width = env.action_space.shape[0]  # type: ignore[index]
    for action in (np.zeros(width + 1), np.full(width, np.nan), np.full(width, np.inf)):
        with pytest.raises(ValueError, match=f"an action must be {width} finite numbers"):
            env.unwrapped.step(action)
    with pytest.raises(ValueError, match="finite numbers, got shape"):
        env.reset(options={"state": np.zeros(2)})
    with pytest.raises(ValueError, match="finite numbers"):
        env.reset(options={"state": np.full_like(info["state"], np.nan)})
    with pytest.raises(ValueError, match="unknown reset options"):
        env.reset(options={"states": info["state"]})
    with pytest.raises(ValueError, match=r"has no camera 'nowhere'; task\.cameras may name"):
        gymnasium.make(f"ebt_policy/{name}", cameras=["nowhere"])
    with pytest.raises(ValueError, match="render_mode must be"):
        type(env.unwrapped)(**(env.unwrapped.spec.kwargs | {"render_mode": "human"}))


@pytest.mark.metaworld
def test_unknown_scene_error_lists_known_scenes():
    pytest.importorskip("metaworld")
    with pytest.raises(ValueError, match=r"has no task 'fold'; task\.scene may be assembly"):
        gymnasium.make("ebt_policy/MetaWorld-reach-v3", scene="fold")


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs MuJoCo")
def test_frames_can_be_rendered_after_the_kinematics_of_an_arm(tmp_path):
    if not can_render():
        pytest.skip("rendering does not work here")
    arm = tmp_path / "arm.xml"
    arm.write_text('<mujoco><worldbody><site name="tool"/></worldbody></mujoco>')
    program = (
        "from ebt_policy.real_robot.kinematics import tool_kinematics\n"
        f"tool_kinematics({str(arm)!r}, 'tool', [])\n"
        "from ebt_policy.envs.mujoco_env import mujoco\n"
        f"mujoco.Renderer(mujoco.MjModel.from_xml_path({str(arm)!r}), 16, 16).render()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.robomimic
@pytest.mark.slow
@pytest.mark.parametrize("backend", rendering.BACKENDS)
def test_a_policy_can_be_loaded_after_rendering(backend):
    """Mesa and PyTorch's compiler each have an LLVM, and the order of loading matters."""
    pytest.importorskip("robosuite")
    if not rendering._works(backend):
        pytest.skip(f"{backend} does not work")
    program = (
        "import torch\n"
        "from ebt_policy.envs.env_spec import EnvSpec\n"
        "kwargs = {'actions': 'absolute', 'cameras': ['agentview']}\n"
        "EnvSpec('ebt_policy/Lift-v0', 10, kwargs=kwargs).make().reset(seed=0)\n"
        "import torch._dynamo\n"
        "print('alive')\n"
    )
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.stdout.endswith("alive\n"), result.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        pytest.param("Lift-v0", "agentview", marks=robosuite),
        pytest.param("MetaWorld-door-open-v3", "corner2", marks=metaworld),
        pytest.param("MetaWorld-drawer-open-v3", "corner2", marks=metaworld),
        pytest.param("AdroitDoor-v0", "fixed", marks=adroit),
    ],
)
def test_cameras_and_rendering_show_the_state(name, camera):
    if not can_render():
        pytest.skip("rendering does not work here")
    env = gymnasium.make(
        f"ebt_policy/{name}", cameras=[camera], image_size=48, render_mode="rgb_array"
    )
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs) and set(obs) == {"obs", camera}
    assert obs[camera].shape == (48, 48, 3) and obs[camera].std() > 5
    again, _ = env.reset(seed=5, options={"state": info["state"]})
    assert np.abs(again[camera].astype(int) - obs[camera]).max() <= 2
    frame = env.render()
    assert isinstance(frame, np.ndarray) and frame.shape == (256, 256, 3) and frame.std() > 5
    env.close()
    unseen = gymnasium.make(f"ebt_policy/{name}", render_mode="rgb_array")
    unseen.reset(seed=5, options={"state": info["state"]})
    alike = np.abs(unseen.render().astype(int) - frame).mean()  # type: ignore[union-attr]
    assert alike < 0.1, "rendered frames must not depend on the cameras"
    unseen.close()


@pytest.mark.parametrize("name", [pytest.param("Lift-v0", marks=robosuite)])
def test_recorded_states_are_rendered_once(name, tmp_path, monkeypatch):
    if not can_render():
        pytest.skip("rendering does not work here")
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path))
    states, _ = play(cached_env(name), 3, steps=2)
    spec = EnvSpec(f"ebt_policy/{name}", 9, kwargs={"cameras": ["agentview"], "image_size": 32})
    rendered = rendered_observations(spec, states)
    assert rendered["agentview"].shape == (3, 32, 32, 3) and rendered["obs"].shape == (3, 9)
    env = spec.make()
    obs, _ = env.reset(seed=8, options={"state": states[1]})
    np.testing.assert_array_equal(obs["agentview"], rendered["agentview"][1])
    env.close()
    monkeypatch.setattr(
        "ebt_policy.data.render_cache.render_states", lambda *_: pytest.fail("rendered again")
    )
    np.testing.assert_array_equal(rendered_observations(spec, states)["obs"], rendered["obs"])


# -- rendering backends -------------------------------------------------------------------------


@pytest.fixture
def linux(monkeypatch):
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    return monkeypatch


def test_first_working_render_backend_is_chosen(linux):
    attempts = []
    linux.setattr(rendering, "_works", lambda name: attempts.append(name) or name == "osmesa")
    assert rendering.choose_backend() == "osmesa" == rendering.os.environ["MUJOCO_GL"]
    assert attempts == ["egl", "osmesa"]
    assert rendering.choose_backend() == "osmesa" and len(attempts) == 2  # not tried again


def test_render_backend_of_the_user_is_kept(linux):
    linux.setenv("MUJOCO_GL", "glfw")
    linux.setattr(rendering, "_works", lambda name: pytest.fail("tested a backend"))
    assert rendering.choose_backend() == "glfw"


def test_without_a_backend_only_rendering_is_refused(linux):
    linux.setattr(rendering, "_works", lambda name: False)
    assert rendering.choose_backend() == rendering.NO_BACKEND
    with pytest.raises(RenderingError, match="apt-get install libosmesa6"):
        rendering.require_rendering()


@pytest.mark.parametrize("extra", ["adroit"])
def test_failed_backend_trial_does_not_crash(linux, extra):
    linux.setattr(rendering, "_TRIAL_PROGRAM", "raise SystemExit(3)")
    assert rendering.choose_backend() == rendering.NO_BACKEND
