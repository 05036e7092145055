"""Conversion of ROS 2 bags to episodes.

    python -m ebt_policy.real_robot.convert_bags robot=ros2_push_t bag=BAG output=STORE

Reads the topics that the robot's configuration observes and commands, at the robot's rate. Bags are
MCAP or SQLite, read by `rosbags`; no ROS is needed. ``bag=`` may be repeated. A bag becomes an
episode, or several: it is cut where an observed topic is silent for longer than ``max_gap_s``.
Message times are the times of recording.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from ebt_policy.cli import report_errors, run_entry
from ebt_policy.config import options
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes, check_episodes
from ebt_policy.errors import ConfigError, UserError
from ebt_policy.io.output import output_store
from ebt_policy.io.paths import listed, reason
from ebt_policy.real_robot.drivers.ros_messages import CommandTopic, ObservedTopic
from ebt_policy.real_robot.drivers.ros_node import MESSAGE_PACKAGES
from ebt_policy.real_robot.drivers.ros_topics import RosTopics, parse_topics
from ebt_policy.real_robot.errors import MessageError
from ebt_policy.real_robot.robots import Robot

console = Console()
logger = logging.getLogger(__name__)

COMMAND = "command "  # the name of no observed topic
MAX_GAP_S = 1.0
Times = dict[str, np.ndarray]  # name of a topic, or COMMAND -> s of its messages, ascending


def read_bag(bag: Path, robot: Robot, max_gap_s: float = MAX_GAP_S) -> list[dict[str, np.ndarray]]:
    """Return the episodes of a bag.

    At each tick, the newest messages until then are the observation, and the newest command until
    the next tick is the action. An episode begins with the first tick that has all of them, and
    ends with the last command. Where an observed topic is silent for longer than `max_gap_s`,
    because it failed or the clock was set, one episode ends and the next begins, with a warning.

    Returns:
        For each episode of n ticks: "action" (n, A), "position" (n, A), and with a first dimension
        n the values of `RosTopics.observation_values`.

    Raises:
        ConfigError: there is no bag; a topic is missing or has messages of another type; messages
            do not fit the configuration; or there is no time at which all of them were there.
    """
    topics = _topics_of(robot)
    messages = _read_messages(bag, topics)
    times = {name: np.array([seconds for seconds, _ in rows]) for name, rows in messages.items()}
    episodes = []
    for start, end in _find_spans(bag, topics, times, max_gap_s):
        rows = []
        for tick in range(int((end - start) * robot.rate_hz + 1e-6) + 1):
            now = start + tick / robot.rate_hz
            newest = {
                name: messages[name][_index_before(times[name], now + 1e-9, "right")][1]
                for name in topics.observed
            }
            next_tick = now + 1 / robot.rate_hz - 1e-9
            command = messages[COMMAND][_index_before(times[COMMAND], next_tick, "left")][1]
            try:
                readings = {name: t.read(newest[name]) for name, t in topics.observed.items()}
                position = readings[topics.position]
                action = topics.commanded.read(command, position)
            except MessageError as error:
                raise ConfigError(f"{bag}: {error}.") from error
            values = topics.observation_values(readings)
            rows.append({**values, "position": position, "action": action})
        episode = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        check_episodes(episode, np.array([len(rows)]), f"{bag}, {start:.2f} to {end:.2f} s")
        episodes.append(episode)
    return episodes


def _topics_of(robot: Robot) -> RosTopics:
    """Return the topics of a robot whose bags can be converted."""
    topics = parse_topics(robot.driver)
    if topics is None:
        raise ConfigError(f"robot={robot.name} has no topics; give a robot with the driver ros2.")
    if topics.commanded.type == "TwistStamped":
        raise ConfigError(
            f"robot={robot.name} is commanded by velocities (TwistStamped); bags can be converted "
            "if commands are JointTrajectory or Float64MultiArray."
        )
    return topics


def _index_before(times: np.ndarray, now: float, side: Literal["left", "right"]) -> int:
    """Return the index of the last of ascending times before `now`; "right" includes `now`."""
    return int(np.searchsorted(times, now, side=side)) - 1


def _read_messages(bag: Path, topics: RosTopics) -> dict[str, list[tuple[float, Any]]]:
    """Return name of a topic, or COMMAND -> its messages as (s, message), in order of time.

    Raises:
        ConfigError: a topic has no messages, or some of another type; or the bag is damaged.
    """
    try:
        from rosbags.rosbag2 import Reader
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError as error:
        raise ConfigError("bag= needs rosbags: pip install rosbags.") from error
    if not bag.exists():
        raise ConfigError(f"bag={bag} does not exist.")
    sources: dict[str, ObservedTopic | CommandTopic] = {
        **topics.observed,
        COMMAND: topics.commanded,
    }
    types = {t.topic: f"{MESSAGE_PACKAGES[t.type]}/msg/{t.type}" for t in sources.values()}
    messages: dict[str, list[tuple[float, Any]]] = {topic: [] for topic in types}
    # Not from the definitions in the bag: rosbags may not understand those of other topics.
    store = get_typestore(Stores.LATEST)
    try:
        with Reader(bag) as reader:
            present = sorted({c.topic for c in reader.connections})
            connections = [c for c in reader.connections if c.topic in types]
            for connection in connections:
                message_type, expected = connection.msgtype, types[connection.topic]
                if message_type != expected:
                    raise ConfigError(
                        f"{bag} has messages of type {message_type} on {connection.topic}, the "
                        f"robot's configuration reads {expected}."
                    )
                if connection.digest not in ("", store.hash_rihs01(message_type)):
                    raise ConfigError(
                        f"{bag} has messages on {connection.topic} whose definition of "
                        f"{message_type} is not that of ROS 2."
                    )
            # Without connections, rosbags would read all messages.
            for connection, nanoseconds, raw in reader.messages(connections) if connections else ():
                message = store.deserialize_cdr(raw, connection.msgtype)
                messages[connection.topic].append((nanoseconds * 1e-9, message))
    except ConfigError:
        raise
    except Exception as error:  # those of rosbags and its dependencies share no base
        raise ConfigError(f"{bag} cannot be read ({reason(error)}).") from error
    if silent := [topic for topic, rows in messages.items() if not rows]:
        raise ConfigError(
            f"{bag} has no messages on {', '.join(silent)}; its topics are "
            f"{', '.join(present) or 'none'}."
        )
    return {name: sorted(messages[t.topic], key=lambda row: row[0]) for name, t in sources.items()}


def _find_spans(
    bag: Path, topics: RosTopics, times: Times, max_gap_s: float
) -> list[tuple[float, float]]:
    """Return the spans (start, end), s, in which all topics are known, up to the last command."""
    gaps = []
    for name, topic in topics.observed.items():
        stamps = np.append(times[name], max(times[name][-1], times[COMMAND][-1]))
        for i in np.flatnonzero(np.diff(stamps) > max_gap_s):
            gaps.append((stamps[i], stamps[i + 1], topic.topic))
    spans, start = [], -np.inf
    for gap_start, gap_end, _ in [*sorted(gaps), (np.inf, np.inf, "")]:
        times_in_span = {name: t[(t >= start) & (t <= gap_start)] for name, t in times.items()}
        if all(map(len, times_in_span.values())):
            first, last = max(t[0] for t in times_in_span.values()), times_in_span[COMMAND][-1]
            if first <= last:
                spans.append((first, min(last, gap_start)))
        start = max(start, gap_end)
    if gaps:
        gap_start, gap_end, topic = max(gaps, key=lambda gap: gap[1] - gap[0])
        logger.warning(
            f"{bag} is cut into {len(spans)} episodes where a topic is silent for more than "
            f"max_gap_s={max_gap_s:g}; the longest gap is {gap_end - gap_start:,.2f} s without "
            f"{topic}, {gap_start - min(t[0] for t in times.values()):.2f} s from the start."
        )
    if not spans:
        ranges = [f"{name.strip()} from {t[0]:.2f} to {t[-1]:.2f} s" for name, t in times.items()]
        raise ConfigError(
            f"{bag} has no episode: no command was sent while all topics were observed without a "
            f"gap of more than max_gap_s={max_gap_s:g} ({', '.join(ranges)})."
        )
    return spans


def convert(
    bags: Sequence[Path], robot: Robot, output: Path, max_gap_s: float = MAX_GAP_S
) -> Episodes:
    """Convert bags to one episode store, and return its episodes.

    Raises:
        ConfigError: some bags cannot be read; the message has the errors of the first few.
        EpisodeError: the output cannot be written.
    """
    _topics_of(robot)
    if not (isinstance(max_gap_s, int | float) and 0 < max_gap_s < np.inf):
        raise ConfigError(f"max_gap_s must be positive, in seconds, got {max_gap_s}.")
    recordings, errors = [], []
    for bag in track(bags, "reading", disable=len(bags) < 2):
        try:
            recordings += read_bag(bag, robot, max_gap_s)
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError(listed(errors))
    arrays = {
        name: np.concatenate([recording[name] for recording in recordings])
        for name in recordings[0]
    }
    ends = np.cumsum([len(recording["action"]) for recording in recordings])
    attributes = {"rate_hz": robot.rate_hz, "robot": robot.name, "action_names": robot.action}
    episodes = Episodes(arrays, ends, attributes)
    write_episodes(output, episodes)
    return episodes


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="convert_bags")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        robot = options(Robot, config["robot"], "robot")
        if not config["bag"] or not config["output"]:
            raise ConfigError("missing required option bag=BAG or output=STORE.")
        bags = [config["bag"]] if isinstance(config["bag"], str) else config["bag"]
        output = Path(config["output"])
        with output_store(output, "output"):
            episodes = convert([Path(bag) for bag in bags], robot, output, config["max_gap_s"])
        num_steps = int(episodes.ends[-1])
        console.print(f"{output}: {len(episodes)} episodes, {num_steps} steps", soft_wrap=True)


def main() -> None:
    """Run the command line."""
    run_entry(_main, "bag")


if __name__ == "__main__":
    main()
