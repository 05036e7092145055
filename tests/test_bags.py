"""ROS 2 bags become episodes that can be learned from."""

import numpy as np
import pytest

from ebt_policy.data.push_t import load_push_t
from ebt_policy.options import ConfigError
from real_robot.bags import convert, main
from real_robot.robots import load_robot

pytestmark = pytest.mark.ros
pytest.importorskip("rosbags")

from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import Stores, get_typestore  # noqa: E402

STORE = get_typestore(Stores.LATEST)


def kind(name):
    return STORE.types[name]


def header(seconds, frame=""):
    stamp = kind("builtin_interfaces/msg/Time")(int(seconds), int(seconds % 1 * 1e9))
    return kind("std_msgs/msg/Header")(stamp, frame)


def joints(seconds, xy):
    numbers = np.asarray(xy, dtype=np.float64)
    return kind("sensor_msgs/msg/JointState")(
        header(seconds), ["y", "x"], numbers[::-1].copy(), np.zeros(0), np.zeros(0)
    )


def pose(seconds, x, y, frame="table"):
    at, turn = kind("geometry_msgs/msg/Point"), kind("geometry_msgs/msg/Quaternion")
    placed = kind("geometry_msgs/msg/Pose")(at(x, y, 0.0), turn(0.0, 0.0, 0.0, 1.0))
    return kind("geometry_msgs/msg/PoseStamped")(header(seconds, frame), placed)


def trajectory(seconds, xy):
    duration = kind("builtin_interfaces/msg/Duration")(0, 100_000_000)
    empty = np.zeros(0)
    point = kind("trajectory_msgs/msg/JointTrajectoryPoint")(
        np.asarray(xy, dtype=np.float64), empty, empty, empty, duration
    )
    return kind("trajectory_msgs/msg/JointTrajectory")(header(0.0), ["x", "y"], [point])


def write_bag(path, frame="table", storage=StoragePlugin.MCAP, commands=True):
    """Three seconds at 50 Hz: the agent goes right by 1 mm a message; it was sent 5 mm ahead."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        types = {
            "/push_t/agent": "sensor_msgs/msg/JointState",
            "/push_t/block": "geometry_msgs/msg/PoseStamped",
            "/push_t/command": "trajectory_msgs/msg/JointTrajectory",
        }
        links = {
            topic: writer.add_connection(topic, name, typestore=STORE)
            for topic, name in types.items()
        }

        def put(topic, seconds, message):
            raw = STORE.serialize_cdr(message, types[topic])
            writer.write(links[topic], int(seconds * 1e9), raw)

        for i in range(150):
            now = 1000 + i / 50
            put("/push_t/agent", now, joints(now, (0.1 + i / 1000, 0.2)))
            put("/push_t/block", now, pose(now, 0.25, 0.3, frame))
            if commands and i % 5 == 0:
                put("/push_t/command", now + 0.01, trajectory(now, (0.105 + i / 1000, 0.2)))
    return path


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_bags_become_demonstrations(tmp_path, storage):
    bags = [write_bag(tmp_path / f"bag{i}", storage=storage) for i in range(2)]
    convert(bags, load_robot("ros2_push_t"), tmp_path / "store")
    demonstrations, _ = load_push_t(path=str(tmp_path / "store"))
    assert len(demonstrations) == 2
    one = demonstrations.episode(1)
    assert 29 <= len(one["action"]) <= 30
    np.testing.assert_allclose(np.diff(one["obs"][:, 18]), 5, atol=1.01)  # px a tick
    np.testing.assert_allclose(one["state"][:, 2:], np.tile([250, 300, 0], (len(one["obs"]), 1)))
    ahead = one["action"][:, 0] - one["obs"][:, 18]
    assert (ahead >= 3).all() and (ahead <= 11).all()


def test_by_command_and_what_cannot_be_read(tmp_path, call_entry):
    bag, output = write_bag(tmp_path / "bag"), tmp_path / "store.zip"
    code, said = call_entry(main, "robot=ros2_push_t", f"bag={bag}", f"output={output}")
    assert code == 0 and output.exists(), said
    robot = load_robot("ros2_push_t")
    with pytest.raises(ConfigError, match="in the frame 'map', not 'table'"):
        convert([write_bag(tmp_path / "other", frame="map")], robot, tmp_path / "x")
    with pytest.raises(ConfigError, match="no messages on /push_t/command"):
        convert([write_bag(tmp_path / "silent", commands=False)], robot, tmp_path / "x")
    with pytest.raises(ConfigError, match="there is no bag at"):
        convert([tmp_path / "nowhere"], robot, tmp_path / "x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metadata.yaml").write_text("nonsense: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        convert([tmp_path / "broken"], robot, tmp_path / "x")
    with pytest.raises(ConfigError, match="sim_push_t has no topics"):
        convert([bag], load_robot("sim_push_t"), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    code, said = call_entry(main, "robot=ros2_push_t")
    assert code == 2 and "say what is to be converted" in said
