"""robomimic files: both published layouts, subsets and actions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robomimic_files import NEEDS_ROBOMIMIC, env_args, write_demonstrations
from scipy.spatial.transform import Rotation

from ebt_policy.data.episodes import EpisodeError
from ebt_policy.data.robomimic import read_robomimic
from ebt_policy.envs.robosuite_tasks import (
    EEF_TO_CONTROL,
    SCENES,
    from_six_dimensional,
    layout,
    observation,
    to_six_dimensional,
)

pytestmark = NEEDS_ROBOMIMIC


@pytest.mark.parametrize("version", ["1.4.1", "1.5.1"])
def test_both_published_layouts_give_equal_episodes(tmp_path, version):
    demonstrations = write_demonstrations(tmp_path / "can.hdf5", version)
    episodes = read_robomimic("Can", tmp_path / "can.hdf5")
    assert episodes.lengths.tolist() == [5, 7, 4]
    assert episodes.arrays["obs"].shape == (16, sum(layout(SCENES["Can"]).values()))
    parts, pose, actions = demonstrations[1]
    episode = episodes.episode(1)
    hand = parts["robot0_eef_pos"]
    robot = [hand, parts["robot0_eef_quat"], parts["robot0_gripper_qpos"]]
    expected = np.concatenate([*robot, pose, pose[:, :3] - hand], axis=1)
    np.testing.assert_allclose(episode["obs"], expected, atol=1e-6)
    np.testing.assert_allclose(episode["action"], actions, atol=1e-6)


def test_missing_rate_defaults_to_20_hz(tmp_path):
    """robosuite's own recorder does not store the rate."""
    args = env_args("1.5.1")
    del args["env_kwargs"]["control_freq"]
    write_demonstrations(tmp_path / "can.hdf5", args=args)
    assert len(read_robomimic("Can", tmp_path / "can.hdf5")) == 3
    args["env_kwargs"]["control_freq"] = 10
    write_demonstrations(tmp_path / "slow.hdf5", args=args)
    with pytest.raises(EpisodeError, match="at 10 Hz; only OSC_POSE at 20 Hz"):
        read_robomimic("Can", tmp_path / "slow.hdf5")


def test_demonstrations_are_ordered_by_number(tmp_path):
    write_demonstrations(tmp_path / "can.hdf5", lengths=range(2, 14))
    assert read_robomimic("Can", tmp_path / "can.hdf5").lengths.tolist() == list(range(2, 14))


def test_subsets_are_selected_by_mask(tmp_path):
    write_demonstrations(tmp_path / "can.hdf5")
    assert read_robomimic("Can", tmp_path / "can.hdf5", mask="train").lengths.tolist() == [5, 4]
    assert read_robomimic("Can", tmp_path / "can.hdf5", mask="valid").lengths.tolist() == [7]
    with pytest.raises(EpisodeError, match=r"no subset 'half'; it has train, valid"):
        read_robomimic("Can", tmp_path / "can.hdf5", mask="half")
    write_demonstrations(tmp_path / "bare.hdf5", masks=False)
    assert len(read_robomimic("Can", tmp_path / "bare.hdf5")) == 3
    with pytest.raises(
        EpisodeError, match=r"it has none at all \(remove task.mask, or create a subset"
    ):
        read_robomimic("Can", tmp_path / "bare.hdf5", mask="train")


def test_absolute_actions_are_the_targets_of_relative_actions(tmp_path):
    demonstrations = write_demonstrations(tmp_path / "can.hdf5")
    episodes = read_robomimic("Can", tmp_path / "can.hdf5", actions="absolute")
    parts, _, actions = demonstrations[0]
    goals = from_six_dimensional(episodes.episode(0)["action"].astype(np.float64))
    np.testing.assert_allclose(
        goals[:, :3], parts["robot0_eef_pos"] + 0.05 * actions[:, :3], atol=1e-6
    )
    rotation = Rotation.from_rotvec(0.5 * actions[:, 3:6])
    orientation = Rotation.from_matrix(
        Rotation.from_quat(parts["robot0_eef_quat"]).as_matrix() @ EEF_TO_CONTROL
    )
    difference = (rotation * orientation).inv() * Rotation.from_rotvec(goals[:, 3:6])
    assert difference.magnitude().max() < 1e-5
    np.testing.assert_allclose(goals[:, 6], actions[:, 6], atol=1e-6)


def test_absolute_actions_of_the_file_are_used(tmp_path):
    import h5py

    path = tmp_path / "can.hdf5"
    demonstrations = write_demonstrations(path, args=env_args("1.5.1", control_delta=False))
    with pytest.raises(EpisodeError, match=r"absolute actions; set task\.actions=absolute"):
        read_robomimic("Can", path)
    first = read_robomimic("Can", path, actions="absolute").episode(0)["action"]
    np.testing.assert_allclose(first, to_six_dimensional(demonstrations[0][2]), atol=1e-6)
    write_demonstrations(path)
    with h5py.File(path, "a") as file:
        for i, (_, _, actions) in enumerate(demonstrations):
            file[f"data/demo_{i}/actions_abs"] = actions
    again = read_robomimic("Can", path, actions="absolute").episode(0)["action"]
    np.testing.assert_array_equal(again, first)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 2))
def test_six_dimensional_rotations_are_decoded(seed, arms):
    rng = np.random.default_rng(seed)
    goals = rng.normal(size=(3, 7 * arms))
    wide = to_six_dimensional(goals)
    assert wide.shape == (3, 10 * arms)
    back = from_six_dimensional(wide).reshape(3, arms, 7)
    goals = goals.reshape(3, arms, 7)
    np.testing.assert_allclose(back[..., [0, 1, 2, 6]], goals[..., [0, 1, 2, 6]])
    decoded, original = (Rotation.from_rotvec(x[..., 3:6].reshape(-1, 3)) for x in (back, goals))
    assert (decoded.inv() * original).magnitude().max() < 1e-6
    # The two columns that a network predicts are neither unit vectors nor orthogonal.
    stretched = from_six_dimensional(wide + 0.05 * rng.normal(size=wide.shape))
    assert np.isfinite(stretched).all()
    assert np.isfinite(from_six_dimensional(np.zeros((2, 10 * arms)))).all()


def test_every_scene_has_the_same_poses_in_both_versions():
    for scene in SCENES.values():
        assert len(scene.poses["1.4"]) == len(scene.poses["1.5"])
        parts = {"object": np.arange(60.0)[None]}
        for arm in range(scene.arms):
            parts |= {f"robot{arm}_eef_pos": np.zeros((1, 3))}
            parts |= {f"robot{arm}_eef_quat": np.zeros((1, 4))}
            parts |= {f"robot{arm}_gripper_qpos": np.zeros((1, 2))}
        for version in scene.poses:
            assert observation(scene, parts, version).shape == (1, sum(layout(scene).values()))


def test_subset_errors_name_missing_demonstrations(tmp_path):
    import h5py

    path = tmp_path / "can [1]* größe.hdf5"
    write_demonstrations(path)
    with h5py.File(path, "a") as file:
        file["mask/gone"] = np.array([b"demo_1", b"demo_7"])
        file["mask/elsewhere"] = h5py.ExternalLink("other.hdf5", "names")
        file.create_group("data/notes")
        file["data/demo_8"] = h5py.SoftLink("/data/demo_1")
        file["mask/linked"] = np.array([b"demo_8"])
    for mask, message in (("gone", "demo_7, which the file does not have"), ("elsewhere", "elsew")):
        with pytest.raises(EpisodeError, match=message):
            read_robomimic("Can", path, mask=mask)
    assert read_robomimic("Can", path, mask="train").lengths.tolist() == [5, 4]
    assert read_robomimic("Can", path, mask="linked").lengths.tolist() == [7]


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(EpisodeError, match="there is no robomimic file at"):
        read_robomimic("Can", tmp_path / "no.hdf5")
