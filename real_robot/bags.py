"""ROS 2 bags become episodes: ``python -m real_robot.bags robot=ros2_push_t bag=BAG output=STORE``.

Reads what the robot's configuration observes and commands (MCAP or SQLite, by `rosbags`; no ROS is
needed), at the robot's rate; a bag is an episode, and ``bag=`` may be repeated. Times are those of
the recording.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from ebt_policy.data.episodes import Episodes, write_episodes
from ebt_policy.entry import hydra_arguments, report_errors
from ebt_policy.options import ConfigError, options
from real_robot.drivers.ros2 import observed
from real_robot.drivers.ros_messages import MessageError
from real_robot.robots import Robot

console = Console()


def read_bag(bag: Path, robot: Robot) -> dict[str, np.ndarray]:
    """An episode: "obs" (n, Do), "action" (n, A), "position" (n, A), cameras, and what `observed`
    gives.

    At each tick the newest messages until then are what was observed, and the newest command
    until the next tick what was done. It begins with the first tick that has all of them, and
    ends with the last command.

    Raises:
        ConfigError: no bag, a topic that is not in it, messages that the configuration cannot read.
    """
    topics, dt = robot.topics, 1 / robot.rate_hz
    arrived: dict[str, list[tuple[float, Any]]] = {name: [] for name in (*topics.parts, COMMAND)}
    names = {part.topic: name for name, part in topics.parts.items()} | {topics.out.topic: COMMAND}
    for topic, seconds, message in _messages(bag, list(names)):
        arrived[names[topic]].append((seconds, message))
    if silent := [topic for topic, name in names.items() if not arrived[name]]:
        raise ConfigError(f"{bag} has no messages on {', '.join(silent)}.")
    times = {name: np.array([seconds for seconds, _ in rows]) for name, rows in arrived.items()}
    start = max(row[0] for row in times.values())
    rows: list[dict[str, np.ndarray]] = []
    for tick in range(int((times[COMMAND][-1] - start) / dt + 1e-6) + 1):
        now = start + tick * dt
        newest = {
            name: arrived[name][int(np.searchsorted(times[name], now + 1e-9, side="right")) - 1][1]
            for name in topics.parts
        }
        last = int(np.searchsorted(times[COMMAND], now + dt - 1e-9, side="left")) - 1
        try:
            read = {name: part.read(newest[name]) for name, part in topics.parts.items()}
            position = read[topics.position]
            action = topics.out.read(arrived[COMMAND][last][1], position)
        except MessageError as error:
            raise ConfigError(f"{bag}: {error}.") from error
        rows.append({**observed(topics, read), "position": position, "action": action})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


COMMAND = "command "  # no part has this name


def _messages(bag: Path, topics: Sequence[str]) -> Iterator[tuple[str, float, Any]]:
    """(topic, seconds, message) of a bag, in order."""
    try:
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.rosbag2 import ReaderError
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError as error:
        raise ConfigError("bags are read by rosbags: pip install rosbags.") from error
    if not bag.exists():
        raise ConfigError(f"there is no bag at {bag}.")
    try:
        with AnyReader([bag], default_typestore=get_typestore(Stores.LATEST)) as reader:
            wanted = [c for c in reader.connections if c.topic in topics]
            for connection, nanoseconds, raw in reader.messages(connections=wanted):
                message = reader.deserialize(raw, connection.msgtype)
                yield connection.topic, nanoseconds * 1e-9, message
    except (AnyReaderError, ReaderError) as error:
        raise ConfigError(f"{bag} cannot be read ({error}).") from error


def convert(bags: Sequence[Path], robot: Robot, output: Path) -> Episodes:
    """All bags as one store."""
    if robot.driver.get("name") != "ros2":
        raise ConfigError(f"{robot.name} has no topics; use a robot of the driver ros2.")
    parts = [read_bag(bag, robot) for bag in track(bags, "reading", disable=len(bags) < 2)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = np.cumsum([len(part["action"]) for part in parts])
    attributes = {"rate_hz": robot.rate_hz, "robot": robot.name, "action_names": robot.action}
    episodes = Episodes(arrays, ends, attributes)
    write_episodes(output, episodes)
    return episodes


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="bags")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        given: Any = OmegaConf.to_container(cfg, resolve=True)
        robot = options(Robot, given["robot"], "robot")
        if not given["bag"] or not given["output"]:
            raise ConfigError("say what is to be converted: bag=BAG output=STORE.")
        bags = [given["bag"]] if isinstance(given["bag"], str) else given["bag"]
        output = Path(given["output"])
        episodes = convert([Path(bag) for bag in bags], robot, output)
        steps = int(episodes.ends[-1])
        console.print(f"{output}: {len(episodes)} episodes, {steps} steps", soft_wrap=True)


def main() -> None:
    with report_errors():
        sys.argv[1:] = hydra_arguments(sys.argv[1:], "bag")
    _main()


if __name__ == "__main__":
    main()
