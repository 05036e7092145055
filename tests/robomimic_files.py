"""Small HDF5 files in the layouts of the published robomimic files."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

NEEDS_ROBOMIMIC = [
    pytest.mark.robomimic,
    pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="h5py is not installed"),
]


def env_args(version: str, name: str = "PickPlaceCan", **changes) -> dict:
    """Return env_args as published: 1.4 has one controller, 1.5 one for each body part."""
    controller = {"type": "OSC_POSE", "control_delta": True, **changes}
    if version == "1.5.1":
        controller = {"type": "BASIC", "body_parts": {"right": controller}}
    kwargs = {"control_freq": 20, "controller_configs": controller, "robots": ["Panda"]}
    return {"env_name": name, "env_version": version, "type": 1, "env_kwargs": kwargs}


def write_demonstrations(path, version="1.5.1", lengths=(5, 7, 4), masks=True, seed=0, args=None):
    """Write a file of the Can task; return (observations, object pose, actions) per episode.

    The content is the same in both layouts; only the order of "object" differs.
    """
    import h5py

    rng = np.random.default_rng(seed)
    demonstrations = []
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(args or env_args(version))
        data.attrs["total"] = sum(lengths)
        for i, length in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = length
            parts = {
                "robot0_eef_pos": rng.normal(size=(length, 3)),
                "robot0_eef_quat": Rotation.random(length, random_state=i).as_quat(),
                "robot0_gripper_qpos": rng.normal(size=(length, 2)),
            }
            pose, relative = rng.normal(size=(length, 7)), rng.normal(size=(length, 7))
            order = (pose, relative) if version.startswith("1.4") else (relative, pose)
            parts["object"] = np.concatenate(order, axis=1)
            actions = rng.uniform(-1, 1, (length, 7))
            for key, rows in parts.items():
                demo[f"obs/{key}"] = rows
            demo["actions"], demo["states"] = actions, rng.normal(size=(length, 9))
            demonstrations.append((parts, pose, actions))
        if masks:
            file["mask/train"] = np.array([b"demo_2", b"demo_0"])
            file["mask/valid"] = np.array([b"demo_1"])
    return demonstrations
