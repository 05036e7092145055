"""Demonstrations that are recorded in robomimic's layout."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from conftest import compose_config
from robomimic_files import NEEDS_ROBOMIMIC

pytestmark = NEEDS_ROBOMIMIC


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs robosuite")
def test_recording_is_read_like_published_files(tmp_path, monkeypatch, call_entry):
    import h5py

    from ebt_policy.envs.robosuite_env import RobosuiteEnv
    from ebt_policy.policies.task_config import PolicyTaskConfig
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
