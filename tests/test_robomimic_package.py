"""The algorithm ``ebt`` in the real robomimic, and robomimic's policies in our evaluation.

``make test-robomimic`` installs robomimic into an environment of its own and runs these tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ebt_policy.envs import rendering
from ebt_policy.envs.rollout import rollout
from ebt_policy.errors import ConfigError
from ebt_policy.integrations.robomimic.compatibility import prepare
from ebt_policy.policies.entries import load_policy_entries, load_single_entry
from ebt_policy.policies.robomimic_checkpoint import RobomimicError, RobomimicPolicy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.robomimic,
    pytest.mark.skipif(
        importlib.util.find_spec("robomimic") is None, reason="run make test-robomimic"
    ),
]
CPU = torch.device("cpu")
PROGRAM = "ebt_policy.integrations.robomimic"
KEYS = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
ALGORITHMS = {
    "ebt": {"algo_name": "ebt", "algo": {"size": "4xs"}},
    "bc_rnn": {
        "algo_name": "bc", "train": {"seq_length": 10},
        "algo": {"rnn": {"enabled": True, "hidden_dim": 16}, "actor_layer_dims": [16]},
    },
    "ebt_one": {
        "algo_name": "ebt", "train": {"frame_stack": 1, "seq_length": 8},
        "algo": {"size": "4xs", "objective": "s2", "n_action_steps": 4},
    },
    "ebt_image": {
        "algo_name": "ebt", "algo": {"size": "4xs"},
        "observation": {
            "modalities": {"obs": {"low_dim": KEYS, "rgb": ["agentview_image"]}},
            "encoder": {"rgb": {
                "core_kwargs": {
                    "feature_dimension": 8, "backbone_class": "ResNet18Conv",
                    "backbone_kwargs": {}, "pool_class": "SpatialSoftmax", "pool_kwargs": {},
                },
                "obs_randomizer_class": "CropRandomizer",
                "obs_randomizer_kwargs": {"crop_height": 40, "crop_width": 40, "num_crops": 1},
            }},
        },
    },
}  # fmt: skip


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a module with one thread; robomimic would use two."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )


def write_config(folder: Path, name: str, data: Path, **experiment) -> Path:
    algorithm = ALGORITHMS[name]
    config = {
        **algorithm,
        "experiment": {
            "name": name, "epoch_every_n_steps": 3, "save": {"every_n_epochs": 1},
            "rollout": {"enabled": False}, "logging": {"log_tb": False}, **experiment,
        },
        "train": {
            "data": str(data), "output_dir": str(folder / "out"), "num_epochs": 2, "cuda": False,
            "batch_size": 4, **algorithm.get("train", {}),
        },
        "observation": algorithm.get(
            "observation", {"modalities": {"obs": {"low_dim": KEYS}}}
        ),
    }  # fmt: skip
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Record Lift, add random images, and train all algorithms with robomimic's program."""
    import h5py

    folder = tmp_path_factory.mktemp("robomimic")
    data = folder / "lift.hdf5"
    recorded = call(
        "ebt_policy.record", "task=lift", "episodes=2", "workers=1", f"output={data}", cwd=folder
    )
    assert recorded.returncode == 0, recorded.stderr
    with h5py.File(data, "a") as file:
        for demo in file["data"].values():
            shape = (len(demo["actions"]), 48, 48, 3)
            demo["obs/agentview_image"] = np.random.default_rng(0).integers(0, 256, shape, "u1")
    for name in ALGORITHMS:
        rollouts = {"enabled": True, "n": 1, "horizon": 3, "rate": 2}
        video = {"rollout": rollouts, "render_video": False}
        file = write_config(folder, name, data, **(video if name == "ebt" else {}))
        trained = call(PROGRAM, "train", "--config", str(file), cwd=folder)
        assert trained.returncode == 0, trained.stdout[-3000:] + trained.stderr[-1000:]
        (checkpoint,) = folder.glob(f"out/{name}/*/models/model_epoch_2*.pth")
        checkpoint.rename(folder / f"{name}.pth")
    return folder


def test_checkpoint_is_played_by_the_program_of_robomimic(folder):
    played = call(
        PROGRAM, "play", "--agent", "ebt.pth", "--n_rollouts", "1", "--horizon", "4", "--seed", "0",
        cwd=folder,
    )  # fmt: skip
    assert played.returncode == 0, played.stderr
    assert '"Horizon": 4.0' in played.stdout


def test_failed_training_has_a_failing_exit_code(folder, tmp_path):
    file = write_config(tmp_path, "ebt", tmp_path / "missing.hdf5")
    failed = call(PROGRAM, "train", "--config", str(file), cwd=tmp_path)
    assert failed.returncode == 1
    assert "missing.hdf5 not found" in failed.stderr.splitlines()[-1]
    assert call(PROGRAM, "trian", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({"train": {"hdf5_normalize_obs": True}}, "set train.hdf5_normalize_obs to false"),
        ({"train": {"seq_length": 16}}, "17 must be a multiple of 4"),
        ({"algo": {"n_action_steps": 16}}, "at most train.seq_length=15"),
    ],
)
def test_unsupported_options_are_errors(folder, tmp_path, section, error):
    file = write_config(tmp_path, "ebt", folder / "lift.hdf5")
    config = json.loads(file.read_text())
    for name, options in section.items():
        config[name] |= options
    file.write_text(json.dumps(config))
    failed = call(PROGRAM, "train", "--config", str(file), cwd=tmp_path)
    assert failed.returncode == 1 and error in failed.stderr


def test_validation_uses_averaged_weights_without_batch_statistics(folder):
    from robomimic.utils.file_utils import policy_from_checkpoint

    prepare()
    checkpoint = torch.load(folder / "ebt_image.pth", map_location="cpu", weights_only=False)
    policy = policy_from_checkpoint(ckpt_dict=checkpoint, device=CPU)[0].policy
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in policy.nets.modules())
    assert int(policy.nets["averaged"].n_averaged) == 6
    rows = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
    batch = {
        "obs": {key: torch.rand(2, 16, width) for key, width in rows.items()},
        "actions": torch.rand(2, 16, 7),
    }
    batch["obs"]["agentview_image"] = torch.rand(2, 16, 3, 48, 48)
    batch = policy.process_batch_for_training(batch)

    def loss() -> float:
        torch.manual_seed(0)
        return policy.log_info(policy.train_on_batch(batch, 1, validate=True))["Loss"]

    policy.set_eval()
    expected = loss()
    for weight in policy.nets["policy"].parameters():
        weight.data += 1
    assert loss() == expected


def test_checkpoint_holds_the_statistics_of_the_data(folder):
    import h5py
    from robomimic.utils.file_utils import policy_from_checkpoint

    prepare()
    checkpoint = torch.load(folder / "ebt.pth", map_location="cpu", weights_only=False)
    config = json.loads(checkpoint["config"])
    config["train"]["data"] = "moved.hdf5"
    checkpoint["config"] = json.dumps(config)
    policy, _ = policy_from_checkpoint(ckpt_dict=checkpoint, device=torch.device("cpu"))
    with h5py.File(folder / "lift.hdf5") as file:
        actions = np.concatenate([demo["actions"][()] for demo in file["data"].values()])
    limits = policy.policy.nets["averaged"].module.energy_policy.normalizer.to_json()["action"]
    np.testing.assert_allclose(limits["mean"], actions.mean(0), atol=1e-5)
    np.testing.assert_allclose(limits["max"], actions.max(0), atol=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_episodes_at_the_same_time_do_not_mix(folder, name):
    if name == "ebt_image" and rendering.choose_backend() == rendering.NO_BACKEND:
        pytest.skip("rendering does not work here")
    policy = RobomimicPolicy(folder / f"{name}.pth", allow_pickle=True)
    (entry,) = load_policy_entries([str(folder / f"{name}.pth")], CPU, allow_pickle=True)
    spec = replace(entry.env_spec, max_steps=12)
    assert spec.kwargs["keys"] == KEYS and spec.n_action_steps == 1
    together = rollout(policy, spec, range(3), workers=3, collect=True)
    alone = rollout(policy, spec, range(3), workers=1, collect=True)
    for a, b in zip(together, alone, strict=True):
        assert a.rows is not None and b.rows is not None
        np.testing.assert_allclose(a.rows["action"], b.rows["action"], atol=1e-5)
    assert len({r.rows["action"].tobytes() for r in alone if r.rows is not None}) == 3


class Payload:
    """A pickle that creates a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_checkpoint_is_opened_only_with_consent(tmp_path):
    file = tmp_path / "bc.pth"
    file.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(ConfigError, match="add allow_pickle=true"):
        load_policy_entries([str(file)], CPU)
    with pytest.raises(ConfigError, match="only ebt-eval reads"):
        load_single_entry(str(file), CPU)
    assert not (tmp_path / "executed").exists()


def test_checkpoint_that_is_damaged_or_missing(tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"no pickle")
    with pytest.raises(RobomimicError, match=r"damaged\.pth cannot be played by robomimic"):
        load_policy_entries([str(tmp_path / "damaged.pth")], CPU, allow_pickle=True)
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        load_policy_entries([str(tmp_path / "missing.pth")], CPU, allow_pickle=True)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"env_name": "Door"}, "was trained on Door; available are Lift"),
        ({"env_version": "1.4.1", "env_name": "PickPlaceCan"}, "has another order in robosuite"),
        ({"env_kwargs": {"robots": ["Sawyer"]}}, "needs 1 Panda"),
    ],
)
def test_checkpoint_of_another_environment(folder, tmp_path, changes, error):
    checkpoint = torch.load(folder / "bc_rnn.pth", map_location="cpu", weights_only=False)
    metadata = checkpoint["env_metadata"]
    kwargs = metadata["env_kwargs"] | changes.pop("env_kwargs", {})
    checkpoint["env_metadata"] = metadata | changes | {"env_kwargs": kwargs}
    torch.save(checkpoint, tmp_path / "other.pth")
    with pytest.raises(RobomimicError, match=error):
        load_policy_entries([str(tmp_path / "other.pth")], CPU, allow_pickle=True)


def test_checkpoint_has_no_inference_options(folder):
    with pytest.raises(ConfigError, match="has no inference option steps"):
        load_policy_entries([f"{folder / 'ebt.pth'}@steps=4"], CPU, allow_pickle=True)
