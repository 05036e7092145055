"""The features of a data set that a policy learns from: chosen or guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lerobot_files import (
    ACTION,
    CAMERA,
    SIZE,
    STATE,
    rows_of,
    write_lerobot,
)

from ebt_policy.data.dataset import Dataset, open_dataset
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.feature_selection import guess_relative, select_features
from ebt_policy.data.rotation_checks import flipping_quaternions
from ebt_policy.errors import ConfigError


def make_store(tmp_path: Path, **arrays: np.ndarray) -> Dataset:
    rows = len(next(iter(arrays.values())))
    write_episodes(tmp_path / "store", Episodes(arrays, np.array([rows // 2, rows])))
    return open_dataset(tmp_path / "store")


def test_relative_actions_are_guessed_from_names_and_data(tmp_path):
    with open_dataset(write_lerobot(tmp_path / "set", "v3.0", rows_of([40, 40]))) as dataset:
        assert guess_relative(dataset, [STATE], ACTION) == [0, 1, 2]
        chosen = select_features(dataset)
        assert chosen.state_keys == (STATE,) and chosen.action_key == ACTION
        assert chosen.relative_to == [0, 1, 2] and chosen.cameras == {}
        assert select_features(dataset, relative_to=None).relative_to is None
        with pytest.raises(ConfigError, match=r"task.relative_to=yes must be auto"):
            select_features(dataset, relative_to="yes")


def test_velocities_and_constants_stay_absolute(tmp_path):
    rng = np.random.default_rng(0)
    position = np.cumsum(rng.normal(size=(60, 3)), axis=0)
    action = np.stack([position[:, 0] + 0.1, rng.normal(size=60), np.zeros(60)], axis=1)
    with make_store(tmp_path, state=position, action=action) as dataset:
        assert guess_relative(dataset, ["state"], "action") == [0, None, None]


@pytest.mark.parametrize(
    ("name", "is_relative"),
    [("eef.roll", False), ("yaw", False), ("euler_0", False), ("rx", False), ("pose_qw", False),
     ("wrist_roll.pos", True), ("kLeftShoulderYaw", True), ("left_wrist_roll", True), ("x", True)],
)  # fmt: skip
def test_angles_of_a_pose_stay_absolute_and_joints_do_not(tmp_path, name, is_relative):
    state = np.linspace(0, 1, 60)[:, None].repeat(2, axis=1)
    attrs = {"names": {"state": [name, "y"], "action": [name, "y"]}}
    episodes = Episodes({"state": state, "action": state + 0.01}, np.array([30, 60]), attrs)
    write_episodes(tmp_path / "store", episodes)
    with open_dataset(tmp_path / "store") as dataset:
        assert guess_relative(dataset, ["state"], "action") == [0 if is_relative else None, 1]


def test_switches_stay_absolute(tmp_path):
    position = np.linspace(0, 1, 60)
    grip = np.where(np.arange(60) % 30 < 20, -1.0, 1.0)
    state, action = np.stack([position, grip], axis=1), np.stack([position + 0.1, grip], axis=1)
    with make_store(tmp_path, state=state, action=action) as dataset:
        assert guess_relative(dataset, ["state"], "action") == [0, None]


def test_ambiguous_features_must_be_named(tmp_path):
    rows = np.zeros((10, 2))
    with make_store(tmp_path, a=rows, b=rows) as dataset:
        with pytest.raises(ConfigError, match=r"no feature named action; set task.action_key"):
            select_features(dataset)
        with pytest.raises(ConfigError, match="no feature that looks like a state"):
            select_features(dataset, action_key="a")
        chosen = select_features(dataset, action_key="a", state_keys=["b", "a"])
        assert chosen.state_keys == ("b", "a")
        with pytest.raises(ConfigError, match=r"task.action_key=aa is unknown"):
            select_features(dataset, action_key="aa")
        with pytest.raises(ConfigError, match=r"task.cameras=top is unknown"):
            select_features(dataset, action_key="a", state_keys=["b"], cameras=["top"])


def test_cameras_have_short_names_and_a_common_size(tmp_path):
    root = write_lerobot(tmp_path / "set", "v3.0", rows_of([20]), video=True)
    with open_dataset(root) as dataset:
        assert select_features(dataset).cameras == {"top": CAMERA}
        assert select_features(dataset).image_size == SIZE  # not enlarged
        for name in ("top", CAMERA):
            assert select_features(dataset, cameras=[name]).cameras == {"top": CAMERA}
        assert select_features(dataset, image_size=[16, 24]).image_size == (16, 24)
        with pytest.raises(ConfigError, match=r"task.image_size=\[4, 4\]"):
            select_features(dataset, image_size=[4, 4])
        with pytest.raises(ConfigError, match=r"has frames; name it in task.cameras"):
            select_features(dataset, state_keys=[CAMERA])


def test_a_gripper_between_small_numbers_is_no_quaternion():
    grip = np.where(np.arange(40) % 20 < 10, -1.0, 1.0)
    small = np.linspace(0, 0.02, 40)
    rows = np.stack([grip, small, small, small], axis=1)
    assert flipping_quaternions(rows) == []
    angle = np.linspace(0, 1, 40)
    quaternion = np.stack([np.sin(angle), 0 * angle, 0 * angle, np.cos(angle)], axis=1)
    assert flipping_quaternions(quaternion) == []
    assert flipping_quaternions(np.round(quaternion * grip[:, None], 3)) == [0]
