"""Episode stores and robomimic files behind the interface of data sets, and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ebt_policy.data.dataset import Role, open_dataset
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes


def test_episode_store(tmp_path):
    arrays = {
        "state": np.arange(20.0).reshape(10, 2), "action": np.ones((10, 3)),
        "camera": np.zeros((10, 16, 16, 3), np.uint8), "depth": np.zeros((10, 4, 4)),
    }  # fmt: skip
    attrs = {"rate_hz": 20, "units": {"state": "m"}, "names": {"action": ["a", "b", "c"]}}
    for path in (tmp_path / "store", tmp_path / "store.zip"):
        write_episodes(path, Episodes(arrays, np.array([4, 10]), attrs))
        with open_dataset(path) as dataset:
            assert dataset.format == "zarr" and dataset.fps == 20
            assert dataset.features["state"].unit == "m"
            assert dataset.features["action"].entries == ("a", "b", "c")
            assert dataset.features["depth"].role is Role.OTHER
            np.testing.assert_array_equal(dataset.read(1, ["state"])["state"], arrays["state"][4:])
            assert dataset.frames(0, "camera", [0, 2]).shape == (2, 16, 16, 3)
            with pytest.raises(EpisodeError, match="has no speed; it has action, camera"):
                dataset.read(0, ["speed"])


def write_hdf5(path: Path, lengths=(5, 8), **groups) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        for i, length in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            demo["actions"] = np.full((length, 4), float(i))
            demo["obs/joint_pos"] = np.random.default_rng(i).normal(size=(length, 6))
            demo["obs/front_image"] = np.full((length, 20, 24, 3), i, np.uint8)
            demo["rewards"] = np.zeros(length)
            for name, make in groups.items():
                demo[name] = make(length)
        file["mask/train"] = np.array([b"demo_1"])


@pytest.mark.robomimic
def test_robomimic_file_of_any_environment(tmp_path):
    write_hdf5(tmp_path / "file.hdf5")
    with open_dataset(tmp_path / "file.hdf5") as dataset:
        assert (dataset.format, dataset.fps, dataset.lengths.tolist()) == ("robomimic", 20, [5, 8])
        assert {name: f.role.value for name, f in dataset.features.items()} == {
            "actions": "action", "obs/joint_pos": "state", "obs/front_image": "image",
            "rewards": "other",
        }  # fmt: skip
        assert dataset.read(1, ["actions"])["actions"].shape == (8, 4)
        assert dataset.frames(1, "obs/front_image", [7]).mean() == 1
        assert dataset.subsets() == {"train": [1]}


@pytest.mark.robomimic
def test_further_groups_of_a_demonstration_are_ignored(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_hdf5(tmp_path / "file.hdf5")
    with h5py.File(tmp_path / "file.hdf5", "a") as file:
        file["data/demo_0/datagen_info/x"] = np.zeros(5)
        file["data/demo_0/obs/nested/x"] = np.zeros(5)
        file["data/demo_0/obs_time"] = np.zeros(5)
        file["data/demo_1/obs_time"] = np.zeros(8)
    with open_dataset(tmp_path / "file.hdf5") as dataset:
        assert "obs_time" in dataset.features and len(dataset.features) == 5
        assert (dataset.frames(1, "obs/front_image", [2, 7]) == 1).all()


def test_older_files_have_only_names_of_actions(tmp_path):
    h5py = pytest.importorskip("h5py")
    arrays = {"action": np.zeros((40, 2)), "position": np.zeros((40, 2)), "obs": np.zeros((40, 2))}
    attrs = {"action_names": ["x", "y"]}
    write_episodes(tmp_path / "store", Episodes(arrays, np.array([40]), attrs))
    with open_dataset(tmp_path / "store") as dataset:
        assert dataset.features["action"].entries == ("x", "y")
        assert dataset.features["position"].entries == ("x", "y")
        assert dataset.features["obs"].entries == ()
    with h5py.File(tmp_path / "old.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["action_names"] = json.dumps(["x", "y"])
        data["demo_0/actions"], data["demo_0/obs/state"] = np.zeros((9, 2)), np.zeros((9, 2))
    with open_dataset(tmp_path / "old.hdf5") as dataset:
        assert dataset.features["actions"].entries == ("x", "y")
        assert dataset.features["obs/state"].entries == ()


def test_lost_chunks_and_odd_attributes_of_a_store(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (40, 200, 200, 3)).astype(np.uint8)
    arrays = {"action": np.zeros((40, 2)), "camera": frames}
    attrs = {"units": ["m"], "names": {"action": "x"}, "instructions": "none"}
    write_episodes(tmp_path / "store", Episodes(arrays, np.array([20, 40]), attrs))
    with open_dataset(tmp_path / "store") as dataset:
        assert dataset.features["action"].entries == () and dataset.instruction(0) == ""
        np.testing.assert_array_equal(dataset.frames(1, "camera", [0, 3]), frames[[20, 23]])
    chunks = sorted((tmp_path / "store/data/camera/c").glob("*"), key=lambda p: int(p.name))
    shutil.rmtree(chunks[-1])
    with open_dataset(tmp_path / "store") as dataset:
        dataset.frames(0, "camera", [0, 3])
        with pytest.raises(EpisodeError, match="is missing"):
            dataset.frames(1, "camera", [19])
    write_episodes(tmp_path / "rate", Episodes(arrays, np.array([40]), {"rate_hz": "fast"}))
    with pytest.raises(EpisodeError, match="has the rate 'fast'; it must be a positive"):
        open_dataset(tmp_path / "rate")


@pytest.mark.robomimic
def test_damaged_robomimic_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "file.hdf5"
    write_hdf5(file)
    content = file.read_bytes()
    file.write_bytes(content[:3000])
    with pytest.raises(EpisodeError, match="truncated"):
        open_dataset(file)
    write_hdf5(file)
    with h5py.File(file, "a") as opened:
        del opened["data/demo_1/obs/joint_pos"]
        opened["data/demo_1/obs/joint_pos"] = h5py.ExternalLink("other.hdf5", "/x")
    with open_dataset(file) as dataset, pytest.raises(EpisodeError, match="demo_1 has joint_pos"):
        dataset.read(1, ["obs/joint_pos"])
    with h5py.File(file, "a") as opened:
        del opened["data/demo_1/obs/joint_pos"]
        opened["data/demo_1/obs/joint_pos"] = np.zeros((8, 7))  # another shape than in demo_0
    with open_dataset(file) as dataset, pytest.raises(EpisodeError, match=r"instead of \(8, 6\)"):
        dataset.read(1, ["obs/joint_pos"])
    with h5py.File(file, "w") as opened:
        opened["something"] = 1
    with pytest.raises(EpisodeError, match="not a robomimic file"):
        open_dataset(file)


def test_unknown_paths(tmp_path):
    with pytest.raises(EpisodeError, match="does not exist"):
        open_dataset(tmp_path / "none")
    (tmp_path / "file.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "file.txt"):
        with pytest.raises(EpisodeError, match=r"no data set of a known format \(lerobot, robo"):
            open_dataset(path)
