"""Demonstrations that are recorded in robomimic's layout."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from conftest import compose_config
from robomimic_files import NEEDS_ROBOMIMIC

from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.zarr_store import EpisodeError
from ebt_policy.errors import ConfigError
from ebt_policy.policies.task_config import PolicyTaskConfig

pytestmark = NEEDS_ROBOMIMIC


@pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs robosuite")
def test_joint_actions_are_refused(tmp_path):
    from ebt_policy.data.robomimic_writer import write_robomimic

    arrays = {"state": np.zeros((5, 31)), "action": np.zeros((5, 8))}
    with pytest.raises(EpisodeError, match="7 or 10 numbers in an action of each arm, got 8"):
        write_robomimic(tmp_path / "x.hdf5", "Lift", Episodes(arrays, np.array([5])))
    assert not list(tmp_path.iterdir())
    store = tmp_path / "store"
    rows = {"obs": np.zeros((40, 19)), "action": np.zeros((40, 8))}
    write_episodes(store, Episodes(rows, np.array([40]), {"rate_hz": 20}))
    task = PolicyTaskConfig.from_config(compose_config("task=lift", f"task.path={store}"))
    with pytest.raises(ConfigError, match=r"has 8 numbers in an action, but .* task=dataset"):
        task.demonstrations()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs robosuite")
def test_recording_is_read_like_published_files(tmp_path, monkeypatch, call_entry):
    import h5py

    from ebt_policy.envs.robosuite_env import RobosuiteEnv
    from ebt_policy.record import main

    monkeypatch.chdir(tmp_path)
    assert call_entry(main, "task=lift", "episodes=2", "workers=1")[0] == 0
    task = PolicyTaskConfig.from_config(compose_config("task=lift"))
    episodes, note = task.demonstrations()
    assert note == "lift: 2 demonstrations by a scripted expert, from demos/lift.hdf5."
    env = RobosuiteEnv("Lift", "absolute")
    for i in range(2):
        episode = episodes.episode(i)
        obs, _ = env.reset(seed=i)
        for row, action in zip(episode["obs"], episode["action"], strict=True):
            np.testing.assert_allclose(obs, row, atol=1e-3)  # contacts amplify differences
            obs, _, solved, _, _ = env.step(action)
        assert solved
    with h5py.File("demos/lift.hdf5") as file:
        data = file["data"]
        assert data.attrs["total"] == len(episodes.arrays["obs"]) and "mask/train" in file
        assert data["demo_0"].attrs["model_file"].startswith("<mujoco")
        assert json.loads(data.attrs["env_args"])["env_name"] == "Lift"
        assert {"robot0_joint_pos", "object"} <= set(data["demo_1/obs"])
        assert data["demo_1/dones"][-1] == 1 == data["demo_1/dones"][()].sum()
