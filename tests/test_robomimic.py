"""robomimic's files: both published layouts, subsets, actions, and every way to be damaged."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from conftest import compose_config
from hypothesis import given, settings
from hypothesis import strategies as st
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

pytestmark = [
    pytest.mark.robomimic,
    pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="without robomimic"),
]


def env_args(version: str, name: str = "PickPlaceCan", **changes) -> dict:
    """As published: version 1.4 has one controller, 1.5 one for each part of the body."""
    controller = {"type": "OSC_POSE", "control_delta": True, **changes}
    if version == "1.5.1":
        controller = {"type": "BASIC", "body_parts": {"right": controller}}
    kwargs = {"control_freq": 20, "controller_configs": controller, "robots": ["Panda"]}
    return {"env_name": name, "env_version": version, "type": 1, "env_kwargs": kwargs}


def write(path, version="1.5.1", lengths=(5, 7, 4), masks=True, seed=0, args=None):
    """A file of the Can task, its content the same in both layouts; returns poses and actions."""
    import h5py

    rng = np.random.default_rng(seed)
    told = []
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
            told.append((parts, pose, actions))
        if masks:
            file["mask/train"] = np.array([b"demo_2", b"demo_0"])
            file["mask/valid"] = np.array([b"demo_1"])
    return told


@pytest.mark.parametrize("version", ["1.4.1", "1.5.1"])
def test_both_published_layouts_give_the_same(tmp_path, version):
    told = write(tmp_path / "can.hdf5", version)
    episodes = read_robomimic("Can", tmp_path / "can.hdf5")
    assert episodes.lengths.tolist() == [5, 7, 4]
    assert episodes.arrays["obs"].shape == (16, sum(layout(SCENES["Can"]).values()))
    parts, pose, actions = told[1]
    one = episodes.episode(1)
    hand = parts["robot0_eef_pos"]
    robot = [hand, parts["robot0_eef_quat"], parts["robot0_gripper_qpos"]]
    expected = np.concatenate([*robot, pose, pose[:, :3] - hand], axis=1)
    np.testing.assert_allclose(one["obs"], expected, atol=1e-6)
    np.testing.assert_allclose(one["action"], actions, atol=1e-6)


def test_the_usual_rate_need_not_be_told(tmp_path):
    """robosuite's own recorder leaves it out."""
    args = env_args("1.5.1")
    del args["env_kwargs"]["control_freq"]
    write(tmp_path / "can.hdf5", args=args)
    assert len(read_robomimic("Can", tmp_path / "can.hdf5")) == 3
    args["env_kwargs"]["control_freq"] = 10
    write(tmp_path / "slow.hdf5", args=args)
    with pytest.raises(EpisodeError, match="at 10 Hz; only OSC_POSE at 20 Hz"):
        read_robomimic("Can", tmp_path / "slow.hdf5")


def test_many_demonstrations_are_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path / "can.hdf5", lengths=range(2, 14))
    assert read_robomimic("Can", tmp_path / "can.hdf5").lengths.tolist() == list(range(2, 14))


def test_subsets(tmp_path):
    write(tmp_path / "can.hdf5")
    assert read_robomimic("Can", tmp_path / "can.hdf5", mask="train").lengths.tolist() == [5, 4]
    assert read_robomimic("Can", tmp_path / "can.hdf5", mask="valid").lengths.tolist() == [7]
    with pytest.raises(EpisodeError, match=r"no subset 'half'; it has train, valid"):
        read_robomimic("Can", tmp_path / "can.hdf5", mask="half")
    write(tmp_path / "bare.hdf5", masks=False)
    assert len(read_robomimic("Can", tmp_path / "bare.hdf5")) == 3
    with pytest.raises(
        EpisodeError, match=r"it has none at all \(leave task.mask out, or make one"
    ):
        read_robomimic("Can", tmp_path / "bare.hdf5", mask="train")


def test_absolute_actions_are_the_goals_of_the_relative_ones(tmp_path):
    told = write(tmp_path / "can.hdf5")
    episodes = read_robomimic("Can", tmp_path / "can.hdf5", actions="absolute")
    parts, _, actions = told[0]
    goals = from_six_dimensional(episodes.episode(0)["action"].astype(np.float64))
    np.testing.assert_allclose(
        goals[:, :3], parts["robot0_eef_pos"] + 0.05 * actions[:, :3], atol=1e-6
    )
    turned = Rotation.from_rotvec(0.5 * actions[:, 3:6])
    here = Rotation.from_matrix(
        Rotation.from_quat(parts["robot0_eef_quat"]).as_matrix() @ EEF_TO_CONTROL
    )
    apart = (turned * here).inv() * Rotation.from_rotvec(goals[:, 3:6])
    assert apart.magnitude().max() < 1e-5
    np.testing.assert_allclose(goals[:, 6], actions[:, 6], atol=1e-6)


def test_absolute_actions_of_the_file_itself_are_taken(tmp_path):
    import h5py

    path = tmp_path / "can.hdf5"
    told = write(path, args=env_args("1.5.1", control_delta=False))
    with pytest.raises(EpisodeError, match=r"absolute actions: set task\.actions=absolute"):
        read_robomimic("Can", path)
    first = read_robomimic("Can", path, actions="absolute").episode(0)["action"]
    np.testing.assert_allclose(first, to_six_dimensional(told[0][2]), atol=1e-6)
    write(path)
    with h5py.File(path, "a") as file:
        for i, (_, _, actions) in enumerate(told):
            file[f"data/demo_{i}/actions_abs"] = actions
    again = read_robomimic("Can", path, actions="absolute").episode(0)["action"]
    np.testing.assert_array_equal(again, first)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 2))
def test_six_numbers_are_a_rotation(seed, arms):
    rng = np.random.default_rng(seed)
    goals = rng.normal(size=(3, 7 * arms))
    wide = to_six_dimensional(goals)
    assert wide.shape == (3, 10 * arms)
    back = from_six_dimensional(wide).reshape(3, arms, 7)
    goals = goals.reshape(3, arms, 7)
    np.testing.assert_allclose(back[..., [0, 1, 2, 6]], goals[..., [0, 1, 2, 6]])
    ours, theirs = (Rotation.from_rotvec(x[..., 3:6].reshape(-1, 3)) for x in (back, goals))
    assert (ours.inv() * theirs).magnitude().max() < 1e-6
    # A network's two columns are neither of unit length nor at right angles.
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


def damage(path, how):
    import h5py

    write(path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no HDF5 at all")
    else:
        with h5py.File(path, "a") as file:
            data = file["data"]
            if how == "no env_args":
                del data.attrs["env_args"]
            elif how == "bad env_args":
                data.attrs["env_args"] = "{"
            elif how == "unknown env":
                data.attrs["env_args"] = json.dumps(env_args("1.5.1", "Coffee_D0"))
            elif how == "other env":
                data.attrs["env_args"] = json.dumps(env_args("1.5.1", "Lift"))
            elif how == "controller":
                data.attrs["env_args"] = json.dumps(env_args("1.5.1", type="JOINT_POSITION"))
            elif how == "version":
                data.attrs["env_args"] = json.dumps(env_args("1.2.0"))
            elif how == "raw":
                del data["demo_1/obs"]
            elif how == "no key":
                del data["demo_1/obs/robot0_eef_quat"]
            elif how == "no actions":
                del data["demo_0/actions"]
            elif how == "wide actions":
                del data["demo_0/actions"]
                data["demo_0/actions"] = np.zeros((5, 8))
            elif how == "nan":
                data["demo_0/actions"][2, 3] = np.nan
            elif how == "zero orientation":
                data["demo_1/obs/robot0_eef_quat"][3] = 0
            elif how == "more observations":
                del data["demo_1/obs/object"]
                data["demo_1/obs/object"] = np.zeros((9, 14))
            elif how == "other states":
                del data["demo_2/states"]
                data["demo_2/states"] = np.zeros((4, 11))
            elif how == "an array of observations":
                del data["demo_1/obs"]
                data["demo_1/obs"] = np.zeros((7, 19))
            elif how == "an array of data":
                del file["data"]
                file["data"] = np.zeros(3)
            elif how == "a group of actions":
                del data["demo_1/actions"]
                data.create_group("demo_1/actions")
            elif how == "words":
                del data["demo_0/obs/object"]
                data["demo_0/obs/object"] = np.full((5, 14), "x", dtype=h5py.string_dtype())
            elif how == "no rows":
                del data["demo_0/actions"]
                data["demo_0/actions"] = np.zeros((0, 7))
            elif how == "absurd":
                del data["demo_0/obs/object"]
                data.create_dataset("demo_0/obs/object", (10**13, 14), "f4", chunks=(1, 14))
            elif how == "absurd actions":
                del data["demo_0/actions"]
                data.create_dataset("demo_0/actions", (10**14, 7), "f4", chunks=(1, 7))
            elif how == "fewer samples":
                data["demo_0"].attrs["num_samples"] = 3
            elif how == "notes":
                data.create_group("notes")
            elif how == "many":
                for i in range(10, 17):
                    data.create_group(f"demo_{i}")
            elif how in ("link", "dangling link", "soft link", "array elsewhere", "virtual array"):
                with h5py.File(path.with_name("other.hdf5"), "w") as other:
                    other["rows"] = np.zeros((5, 7))
                    other.create_group("demo")
                if how == "link":
                    data["demo_9"] = h5py.ExternalLink("other.hdf5", "demo")
                elif how == "dangling link":
                    data["demo_9"] = h5py.ExternalLink("none.hdf5", "demo")
                elif how == "soft link":
                    file["hidden"] = h5py.ExternalLink("other.hdf5", "/")
                    data["demo_9"] = h5py.SoftLink("/hidden/demo")
                elif how == "array elsewhere":
                    del data["demo_0/actions"]
                    raw = path.with_name("raw.bin")
                    raw.write_bytes(bytes(5 * 7 * 8))
                    data.create_dataset(
                        "demo_0/actions", (5, 7), "f8", external=[(str(raw), 0, 280)]
                    )
                else:
                    del data["demo_0/actions"]
                    virtual = h5py.VirtualLayout((5, 7), "f8")
                    virtual[...] = h5py.VirtualSource("other.hdf5", "rows", (5, 7))
                    data.create_virtual_dataset("demo_0/actions", virtual)
            elif how == "none":
                for name in list(data):
                    del data[name]
            elif how == "foreign":
                del file["data"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "cannot be read .* truncated or no robomimic file"),
        ("empty", "truncated or no robomimic file"),
        ("text", "truncated or no robomimic file"),
        ("no env_args", "does not say its environment .* convert it with robomimic's"),
        ("bad env_args", "cannot be understood"),
        ("unknown env", "those of 'Coffee_D0', which is not among the tasks"),
        ("other env", "another environment than PickPlaceCan: those of Lift"),
        ("controller", "controller type JOINT_POSITION at 20 Hz; only OSC_POSE"),
        ("version", r"robosuite 1\.2; versions 1\.4 and 1\.5 are understood"),
        ("raw", r"demo_1 has no observations, only states: add them with .*states_to_obs"),
        ("no key", "demo_1 lacks robot0_eef_quat"),
        ("no actions", "can.hdf5: demo_0 lacks actions"),
        ("wide actions", r"demo_0 has actions of shape \(5, 8\), not \(rows, 7\)"),
        ("nan", "demo_0 has NaN or infinity in actions, first in row 2"),
        ("zero orientation", "demo_1 has no orientation .* robot0_eef_quat, first in row 3"),
        ("more observations", "demo_1 has 9 rows of object, but 7 actions"),
        ("other states", "demo_2 has states of 11 numbers, others have 9"),
        ("an array of observations", "demo_1 has an array in place of the group obs"),
        ("an array of data", "has an array in place of the group data: it is no robomimic file"),
        ("a group of actions", "demo_1 has a group in place of the array actions"),
        ("words", "demo_0 has object of type object, not numbers"),
        ("no rows", r"demo_0 has actions of shape \(0, 7\)"),
        ("absurd", r"demo_0 has 10000000000000 rows of object, but 5 actions"),
        ("absurd actions", r"cannot be read \(Unable to allocate"),
        ("fewer samples", r"demo_0 has 5 actions, but says that it has 3 \(num_samples\)"),
        ("notes", r"group data holds notes, which is no demonstration .* task\.mask"),
        ("many", r"demo_10 lacks actions\. .*demo_14 lacks actions\. And 2 more\."),
        ("link", "demo_9 has demo_9 in another file, which is not followed"),
        ("dangling link", "demo_9 has demo_9 in another file, which is not followed"),
        ("soft link", "demo_9 has demo_9 in another file, which is not followed"),
        ("array elsewhere", "demo_0 has actions in another file, which is not followed"),
        ("virtual array", "demo_0 has actions in another file, which is not followed"),
        ("none", "holds no demonstrations"),
        ("foreign", "lacks data: it is no robomimic file"),
    ],
)
def test_damage_is_told_in_one_sentence(tmp_path, how, message):
    path = tmp_path / "can.hdf5"
    damage(path, how)
    with pytest.raises(EpisodeError, match=message) as told:
        read_robomimic("Can", path)
    assert "\n" not in str(told.value) and str(path) in str(told.value)


def test_subsets_name_what_is_there(tmp_path):
    import h5py

    path = tmp_path / "can [1]* größe.hdf5"
    write(path)
    with h5py.File(path, "a") as file:
        file["mask/gone"] = np.array([b"demo_1", b"demo_7"])
        file["mask/elsewhere"] = h5py.ExternalLink("other.hdf5", "names")
        file.create_group("data/notes")
        file["data/demo_8"] = h5py.SoftLink("/data/demo_1")
        file["mask/linked"] = np.array([b"demo_8"])
    for mask, message in (("gone", "demo_7, which the file does not hold"), ("elsewhere", "elsew")):
        with pytest.raises(EpisodeError, match=message):
            read_robomimic("Can", path, mask=mask)
    assert read_robomimic("Can", path, mask="train").lengths.tolist() == [5, 4]
    assert read_robomimic("Can", path, mask="linked").lengths.tolist() == [7]


# -- what a file says of its actions ------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.4.1", "1.5.1"])
@pytest.mark.parametrize(
    ("ranges", "moves", "turns", "clipped"),
    [
        ({}, 0.05, 0.5, 1),
        (
            {"output_max": [0.02] * 3 + [0.3] * 3, "output_min": [-0.02] * 3 + [-0.3] * 3},
            0.02,
            0.3,
            1,
        ),
        ({"input_max": 0.5, "input_min": -0.5}, 0.1, 1.0, 0.5),
    ],
)
def test_goals_are_made_in_the_scale_of_the_controller(
    tmp_path, version, ranges, moves, turns, clipped
):
    told = write(tmp_path / "can.hdf5", version, args=env_args(version, **ranges))
    episodes = read_robomimic("Can", tmp_path / "can.hdf5", actions="absolute")
    parts, _, actions = told[0]
    goals = from_six_dimensional(episodes.episode(0)["action"].astype(np.float64))
    clipped_to = actions[:, :6].clip(-clipped, clipped)
    way = goals[:, :3] - parts["robot0_eef_pos"]
    np.testing.assert_allclose(way, moves * clipped_to[:, :3], atol=1e-6)
    here = Rotation.from_matrix(
        Rotation.from_quat(parts["robot0_eef_quat"]).as_matrix() @ EEF_TO_CONTROL
    )
    turned = Rotation.from_rotvec(goals[:, 3:6]) * here.inv()
    np.testing.assert_allclose(turned.as_rotvec(), turns * clipped_to[:, 3:], atol=1e-5)
    if ranges:
        with pytest.raises(
            EpisodeError, match=r"its controller turns .* set task\.actions=absolute"
        ):
            read_robomimic("Can", tmp_path / "can.hdf5")


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        ("controller", {"impedance_mode": "variable_kp"}, "controller impedance_mode variable_kp"),
        ("controller", {"goal_update_mode": "desired"}, "controller goal_update_mode desired"),
        ("controller", {"position_limits": [-1, 1]}, "controller position_limits"),
        ("controller", {"input_ref_frame": "eef"}, "controller input_ref_frame eef"),
        ("controller", {"control_delta": False, "input_ref_frame": "base"}, "input_ref_frame base"),
        ("controller", {"output_max": 0.1}, "only ranges around zero"),
        ("controller", {"input_max": 0, "input_min": 0}, "only ranges around zero"),
        ("controller", {"output_max": "far"}, "cannot be understood"),
        ("kwargs", {"robots": ["Sawyer"]}, "with the robots Sawyer"),
        ("kwargs", {"robots": "UR5e"}, "with the robots UR5e"),
        ("kwargs", {"robots": ["Panda", "Panda"]}, "played by 1 Panda"),
        ("kwargs", {"gripper_types": "RethinkGripper"}, "the grippers RethinkGripper"),
        ("kwargs", {"controller_configs": []}, "no controller of the arms"),
        ("kwargs", {"control_freq": 10}, "at 10 Hz; only OSC_POSE at 20 Hz"),
        ("args", {"type": 3}, "a simulator that robomimic numbers 3"),
    ],
)
def test_what_changes_the_meaning_of_actions_is_refused(tmp_path, where, changes, message):
    args = env_args("1.5.1")
    kwargs = args["env_kwargs"]
    controller = kwargs["controller_configs"]["body_parts"]["right"]
    {"args": args, "kwargs": kwargs, "controller": controller}[where].update(changes)
    write(tmp_path / "can.hdf5", args=args)
    with pytest.raises(EpisodeError, match=message):
        read_robomimic("Can", tmp_path / "can.hdf5", actions="absolute")


def test_what_means_the_same_is_read(tmp_path):
    args = env_args("1.5.1", input_ref_frame="base", impedance_mode="fixed", position_limits=None)
    kwargs = args["env_kwargs"]
    arms = {"arms": kwargs["controller_configs"].pop("body_parts")}
    kwargs |= {"robots": "Panda", "controller_configs": {"type": "BASIC", "body_parts": arms}}
    write(tmp_path / "can.hdf5", args=args)
    assert len(read_robomimic("Can", tmp_path / "can.hdf5")) == 3


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(EpisodeError, match="There is no robomimic file at"):
        read_robomimic("Can", tmp_path / "no.hdf5")


# -- recorded here ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="without robosuite")
def test_a_recording_goes_the_way_of_the_published_files(tmp_path, monkeypatch, call_entry):
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
        one = episodes.episode(i)
        obs, _ = env.reset(seed=i)
        for row, action in zip(one["obs"], one["action"], strict=True):
            np.testing.assert_allclose(obs, row, atol=1e-3)  # contact forces grow differences
            obs, _, solved, _, _ = env.step(action)
        assert solved
    with h5py.File("demos/lift.hdf5") as file:
        data = file["data"]
        assert data.attrs["total"] == len(episodes.arrays["obs"]) and "mask/train" in file
        assert data["demo_0"].attrs["model_file"].startswith("<mujoco")
        assert json.loads(data.attrs["env_args"])["env_name"] == "Lift"
        assert {"robot0_joint_pos", "object"} <= set(data["demo_1/obs"])
        assert data["demo_1/dones"][-1] == 1 == data["demo_1/dones"][()].sum()
