"""Controller settings of robomimic files."""

from __future__ import annotations

import numpy as np
import pytest
from robomimic_files import NEEDS_ROBOMIMIC, env_args, write_demonstrations
from scipy.spatial.transform import Rotation

from ebt_policy.data.episodes import EpisodeError
from ebt_policy.data.robomimic import read_robomimic
from ebt_policy.envs.robosuite_tasks import EEF_TO_CONTROL, from_six_dimensional

pytestmark = NEEDS_ROBOMIMIC


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
def test_goals_use_the_scale_of_the_controller(tmp_path, version, ranges, moves, turns, clipped):
    demonstrations = write_demonstrations(
        tmp_path / "can.hdf5", version, args=env_args(version, **ranges)
    )
    episodes = read_robomimic("Can", tmp_path / "can.hdf5", actions="absolute")
    parts, _, actions = demonstrations[0]
    goals = from_six_dimensional(episodes.episode(0)["action"].astype(np.float64))
    clipped_to = actions[:, :6].clip(-clipped, clipped)
    translation = goals[:, :3] - parts["robot0_eef_pos"]
    np.testing.assert_allclose(translation, moves * clipped_to[:, :3], atol=1e-6)
    orientation = Rotation.from_matrix(
        Rotation.from_quat(parts["robot0_eef_quat"]).as_matrix() @ EEF_TO_CONTROL
    )
    rotation = Rotation.from_rotvec(goals[:, 3:6]) * orientation.inv()
    np.testing.assert_allclose(rotation.as_rotvec(), turns * clipped_to[:, 3:], atol=1e-5)
    if ranges:
        with pytest.raises(
            EpisodeError, match=r"its controller maps .* set task\.actions=absolute"
        ):
            read_robomimic("Can", tmp_path / "can.hdf5")


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("controller", {"impedance_mode": "variable_kp"}, "controller impedance_mode variable_kp"),
        ("controller", {"goal_update_mode": "desired"}, "controller goal_update_mode desired"),
        ("controller", {"position_limits": [-1, 1]}, "controller position_limits"),
        ("controller", {"input_ref_frame": "eef"}, "controller input_ref_frame eef"),
        ("controller", {"control_delta": False, "input_ref_frame": "base"}, "input_ref_frame base"),
        ("controller", {"output_max": 0.1}, "symmetric around zero"),
        ("controller", {"input_max": 0, "input_min": 0}, "symmetric around zero"),
        ("controller", {"output_max": "far"}, "cannot be parsed"),
        ("kwargs", {"robots": ["Sawyer"]}, "with the robots Sawyer"),
        ("kwargs", {"robots": "UR5e"}, "with the robots UR5e"),
        ("kwargs", {"robots": ["Panda", "Panda"]}, "needs 1 Panda"),
        ("kwargs", {"gripper_types": "RethinkGripper"}, "the grippers RethinkGripper"),
        ("kwargs", {"controller_configs": []}, "no controller of the arms"),
        ("kwargs", {"control_freq": 10}, "at 10 Hz; only OSC_POSE at 20 Hz"),
        ("args", {"type": 3}, r"another simulator \(number 3"),
    ],
)
def test_unsupported_controller_settings_are_refused(tmp_path, section, changes, message):
    args = env_args("1.5.1")
    kwargs = args["env_kwargs"]
    controller = kwargs["controller_configs"]["body_parts"]["right"]
    {"args": args, "kwargs": kwargs, "controller": controller}[section].update(changes)
    write_demonstrations(tmp_path / "can.hdf5", args=args)
    with pytest.raises(EpisodeError, match=message):
        read_robomimic("Can", tmp_path / "can.hdf5", actions="absolute")


def test_equivalent_controller_settings_are_read(tmp_path):
    args = env_args("1.5.1", input_ref_frame="base", impedance_mode="fixed", position_limits=None)
    kwargs = args["env_kwargs"]
    arms = {"arms": kwargs["controller_configs"].pop("body_parts")}
    kwargs |= {"robots": "Panda", "controller_configs": {"type": "BASIC", "body_parts": arms}}
    write_demonstrations(tmp_path / "can.hdf5", args=args)
    assert len(read_robomimic("Can", tmp_path / "can.hdf5")) == 3
