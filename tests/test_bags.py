"""Conversion of ROS 2 bags."""

import re

import numpy as np
import pytest

from ebt_policy.convert import main
from ebt_policy.data.dataset import Role, open_dataset
from ebt_policy.data.episode_store import read_episodes
from ebt_policy.data.push_t import load_push_t
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.bags import write_bags
from ebt_policy.real_robot.robots import load_robot

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


NAMES = {
    "/push_t/agent": "sensor_msgs/msg/JointState",
    "/push_t/block": "geometry_msgs/msg/PoseStamped",
    "/push_t/command": "trajectory_msgs/msg/JointTrajectory",
}


def write_messages(path, messages, types=NAMES, storage=StoragePlugin.MCAP):
    """Write (topic, seconds, message) tuples to a bag in the given order."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        links = {
            topic: writer.add_connection(topic, name, typestore=STORE)
            for topic, name in types.items()
        }
        for topic, seconds, message in messages:
            raw = STORE.serialize_cdr(message, types[topic])
            writer.write(links[topic], int(seconds * 1e9), raw)
    return path


def motion(frame="table", commands=True, clock=lambda t: 1000 + t, blocks=lambda t: True):
    """Yield 3 s of messages at 50 Hz: the agent moves 1 mm per message, commands 5 mm ahead."""
    for i in range(150):
        stamp = clock(i / 50)
        yield "/push_t/agent", stamp, joints(stamp, (0.1 + i / 1000, 0.2))
        if blocks(i / 50):
            yield "/push_t/block", stamp, pose(stamp, 0.25, 0.3, frame)
        if commands and i % 5 == 0:
            yield "/push_t/command", stamp + 0.01, trajectory(stamp, (0.105 + i / 1000, 0.2))


def write_bag(path, storage=StoragePlugin.MCAP, **changes):
    return write_messages(path, motion(**changes), storage=storage)


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_bags_become_demonstrations(tmp_path, storage):
    bags = [write_bag(tmp_path / f"bag{i}", storage=storage) for i in range(2)]
    write_bags(bags, load_robot("ros2_push_t"), tmp_path / "store")
    demonstrations, _ = load_push_t(path=str(tmp_path / "store"))
    assert len(demonstrations) == 2
    names = read_episodes(tmp_path / "store").attrs["names"]
    assert names == {"action": ["x", "y"], "position": ["x", "y"]}  # obs is transformed
    episode = demonstrations.episode(1)
    assert 29 <= len(episode["action"]) <= 30
    np.testing.assert_allclose(np.diff(episode["obs"][:, 18]), 5, atol=1.01)  # px per tick
    np.testing.assert_allclose(
        episode["state"][:, 2:], np.tile([250, 300, 0], (len(episode["obs"]), 1))
    )
    ahead = episode["action"][:, 0] - episode["obs"][:, 18]
    assert (ahead >= 3).all() and (ahead <= 11).all()


@pytest.mark.parametrize("name", ["lerobot", "store.zip", "demos.hdf5"])
def test_command_writes_every_format(tmp_path, call_entry, name):
    if name == "lerobot":
        pytest.importorskip("pyarrow")
    if name == "demos.hdf5":
        pytest.importorskip("h5py")
    bags, output = [write_bag(tmp_path / f"bag{i}") for i in range(2)], tmp_path / name
    code, error = call_entry(main, *map(str, bags), str(output), "robot=ros2_push_t")
    assert code == 0, error
    with open_dataset(output) as dataset:
        assert len(dataset) == 2 and dataset.fps == 10
        action = next(f for f in dataset.features.values() if f.role is Role.ACTION)
        assert name == "demos.hdf5" or action.entries == ("x", "y")
        np.testing.assert_allclose(np.diff(dataset.read(1, [action.name])[action.name][:, 0]), 5,
                                   atol=0.01)  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"bag0", "bag1", name}  # nothing is left


def test_unusable_arguments_for_bags(tmp_path, call_entry):
    bag, output = str(write_bag(tmp_path / "bag")), str(tmp_path / "new")
    store = str(tmp_path / "store.zarr")
    for arguments, message in (
        ((bag, output), "bags need robot=NAME"),
        ((bag, output, "robot=ros2_push_t", "fps=5"), "bags have the rate of the robot"),
        ((bag, bag, "robot=ros2_push_t"), "exists; give a new file"),
        ((bag, output, "robot=ros2_push_t", "max_gap_s=0"), "max_gap_s must be positive"),
        ((bag, output, "robot=sim_push_t"), "sim_push_t has no topics"),
        ((bag, store, output, "robot=ros2_push_t"), "store.zarr does not exist"),
        ((store, store, output), "2 sources, of which none is a bag"),
        ((store, output, "robot=ros2_push_t"), "robot= is for bags"),
    ):
        code, error = call_entry(main, *arguments)
        assert code == 2 and message in error, (arguments, error)
    assert {path.name for path in tmp_path.iterdir()} == {"bag"}


def test_unreadable_bags(tmp_path):
    bag = write_bag(tmp_path / "bag")
    robot = load_robot("ros2_push_t")
    with pytest.raises(ConfigError, match="in the frame 'map', not 'table'"):
        write_bags([write_bag(tmp_path / "other", frame="map")], robot, tmp_path / "x")
    with pytest.raises(ConfigError, match="no messages on /push_t/command"):
        write_bags([write_bag(tmp_path / "silent", commands=False)], robot, tmp_path / "x")
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        write_bags([tmp_path / "nowhere"], robot, tmp_path / "x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metadata.yaml").write_text("nonsense: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        write_bags([tmp_path / "broken"], robot, tmp_path / "x")
    with pytest.raises(ConfigError, match="sim_push_t has no topics"):
        write_bags([bag], load_robot("sim_push_t"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def assert_refused(tmp_path, message, bag, **options):
    with pytest.raises(ConfigError, match=message) as caught:
        write_bags([bag], load_robot("ros2_push_t"), tmp_path / "store", **options)
    assert str(bag) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_missing_topics_are_a_one_line_error(tmp_path):
    other = {"/other/joints": "sensor_msgs/msg/JointState"}
    message = ("/other/joints", 1.0, joints(1.0, (0, 0)))
    topics = "/push_t/agent, /push_t/block, /push_t/command"
    bag = write_messages(tmp_path / "other", [message], other)
    assert_refused(tmp_path, f"no messages on {topics}; its topics are /other/joints", bag)
    bag = write_messages(tmp_path / "none", [], {})
    assert_refused(tmp_path, f"no messages on {topics}; its topics are none|cannot be read", bag)
    assert_refused(
        tmp_path, f"no messages on {topics}; its", write_messages(tmp_path / "empty", [])
    )
    types = {**NAMES, "/push_t/agent": "geometry_msgs/msg/PoseStamped"}
    wrong = [("/push_t/agent", 1.0, pose(1.0, 0, 0))]
    bag = write_messages(tmp_path / "types", wrong, types)
    assert_refused(
        tmp_path, r"type geometry_msgs/msg/PoseStamped on /push_t/agent, .*JointState", bag
    )


def test_unrelated_topics_are_ignored(tmp_path):
    """Service events and unknown message types are ignored."""
    path = tmp_path / "a [1]* größe"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, kind in (
            ("/set_goal/_service_event", "interfaces/srv/SetGoal_Event"),
            ("/custom", "interfaces/msg/Thing"),
        ):
            link = writer.add_connection(
                topic, kind, msgdef="unknown/Type[] ???", rihs01="RIHS01_0"
            )
            writer.write(link, int(1001e9), b"\0\1\0\0beyond us")
        links = {t: writer.add_connection(t, n, typestore=STORE) for t, n in NAMES.items()}
        for topic, seconds, message in motion():
            raw = STORE.serialize_cdr(message, NAMES[topic])
            writer.write(links[topic], int(seconds * 1e9), raw)
    assert len(write_bags([path], load_robot("ros2_push_t"), tmp_path / "store")) == 1


def test_message_types_with_another_definition_are_refused(tmp_path):
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        kind = "sensor_msgs/msg/JointState"
        link = writer.add_connection("/push_t/agent", kind, msgdef="float64 x", rihs01="RIHS01_12")
        writer.write(link, 1, b"\0\1\0\0" + bytes(8))
    assert_refused(
        tmp_path, "on /push_t/agent whose definition of .*JointState differs", tmp_path / "bag"
    )


def test_commands_that_end_too_early_are_a_one_line_error(tmp_path):
    early = [("/push_t/command", 10 + i / 50, trajectory(0, (0.1, 0.2))) for i in range(9)]
    bag = write_messages(tmp_path / "bag", [*motion(commands=False), *early])
    assert_refused(tmp_path, r"no command was sent while .*command from 10\.00 to 10\.16 s", bag)


@pytest.mark.parametrize("jump", [86_400, 1.7e9, -900])
def test_bag_is_cut_at_jumps_of_the_clock(tmp_path, jump, caplog):
    bag = write_bag(tmp_path / "bag", clock=lambda t: 1000 + t + (jump if t >= 1.5 else 0))
    episodes = write_bags([bag], load_robot("ros2_push_t"), tmp_path / "store")
    assert re.search(r"cut into 2 episodes .* s without /push_t/", caplog.text)
    assert len(episodes) == 2 and 26 <= episodes.ends[-1] <= 30
    for i in range(2):  # no row lies between the two parts
        agent = episodes.episode(i)["obs"][:, 18]
        np.testing.assert_allclose(np.diff(agent), 5, atol=1.01)
        assert (episodes.episode(i)["action"][:, 0] - agent <= 11).all()


def test_silent_topics_split_the_episode(tmp_path, caplog):
    def blocks(t):
        return not 0.5 <= t < 1.8

    bag = write_bag(tmp_path / "bag", blocks=blocks)
    episodes = write_bags([bag], load_robot("ros2_push_t"), tmp_path / "store")
    assert "longest gap is 1.32 s without /push_t/block, 0.48 s from" in caplog.text
    assert len(episodes) == 2 and 14 <= episodes.ends[-1] <= 17
    uncut = write_bags([bag], load_robot("ros2_push_t"), tmp_path / "whole", max_gap_s=2)
    assert len(uncut) == 1 and uncut.ends[-1] >= 29
    bag = write_bag(tmp_path / "lost", blocks=lambda t: t < 0.5)  # commands continue
    episodes = write_bags([bag], load_robot("ros2_push_t"), tmp_path / "store")
    assert "cut into 1 episodes" in caplog.text
    assert episodes.ends[-1] <= 6
    bag = write_bag(tmp_path / "once", blocks=lambda t: t == 0)
    assert len(write_bags([bag], load_robot("ros2_push_t"), tmp_path / "store", max_gap_s=3)) == 1
    assert_refused(tmp_path / "x", r"has no episode: .* max_gap_s=1 \(", bag)
    assert "cut into 0 episodes" in caplog.text


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_messages_are_sorted_by_time(tmp_path, storage):
    robot = load_robot("ros2_push_t")
    shuffled = list(motion())
    np.random.default_rng(0).shuffle(shuffled)
    mixed = write_bags(
        [write_messages(tmp_path / "a", shuffled, storage=storage)], robot, tmp_path / "x"
    )
    plain = write_bags([write_bag(tmp_path / "b")], robot, tmp_path / "y")
    for key, rows in plain.arrays.items():
        np.testing.assert_array_equal(mixed.arrays[key], rows)


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.95])
def test_truncated_bags_are_a_one_line_error(tmp_path, storage, part):
    bag = write_bag(tmp_path / "bag", storage=storage)
    (file,) = (f for f in bag.iterdir() if f.suffix in (".mcap", ".db3"))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    assert_refused(tmp_path, "cannot be read|has no messages on", bag)


def test_all_unreadable_bags_are_listed(tmp_path):
    robot, good = load_robot("ros2_push_t"), write_bag(tmp_path / "good")
    nan = [("/push_t/agent", 1000.2, joints(0, (np.nan, 0.2)))]
    bad = write_messages(tmp_path / "nan", [*motion(), *nan])
    with pytest.raises(ConfigError) as caught:
        write_bags([tmp_path / "a", good, bad, tmp_path / "b"], robot, tmp_path / "store")
    for message in (
        "does not exist",
        "/a does",
        "/b does",
        "/nan: /push_t/agent: the position of the joint x is not finite",
    ):
        assert message in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("limit", ["0", "-1", ".nan", ".inf", "long", "null"])
def test_max_gap_must_be_positive(tmp_path, limit, call_entry):
    paths = [str(write_bag(tmp_path / "bag")), str(tmp_path / "store")]
    code, error = call_entry(main, *paths, "robot=ros2_push_t", f"max_gap_s={limit}")
    assert code == 2 and "max_gap_s must be" in error
