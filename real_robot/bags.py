"""Episodes of ROS 2 bags.

The observed and commanded topics of the robot's configuration are sampled at the robot's rate. Bags
are MCAP or SQLite files. `rosbags` reads them, so ROS is not needed. A bag becomes one episode, or
several: it is cut where an observed topic has no message for longer than ``max_gap_s``. The time of
a message is its time of recording.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import track

from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes, check_episodes
from ebt_policy.errors import ConfigError, UserError
from ebt_policy.io.paths import listed, reason
from ebt_policy.real_robot.drivers.ros_messages import CommandTopic, ObservedTopic
from ebt_policy.real_robot.drivers.ros_node import MESSAGE_PACKAGES
from ebt_policy.real_robot.drivers.ros_topics import RosTopics, parse_topics
from ebt_policy.real_robot.errors import MessageError
from ebt_policy.real_robot.robots import Robot

logger = logging.getLogger(__name__)

COMMAND = "command "  # The space keeps it distinct from the name of an observed topic.
MAX_GAP_S = 1.0
Times = dict[str, np.ndarray]  # name of an observed topic, or COMMAND -> ascending times, s


def read_bag(bag: Path, robot: Robot, max_gap_s: float = MAX_GAP_S) -> list[dict[str, np.ndarray]]:
    """Read the episodes of a bag.

    The observation of a tick consists of the newest messages until the tick. Its action is the
    newest command before the next tick. An episode begins with the first tick that has all of them,
    and ends with the last command. The episode is cut, with a warning, where an observed topic has
    no message for longer than `max_gap_s`, because it failed or the clock was set.

    Args:
        bag: path of the bag.
        robot: robot with the driver ros2, whose topics and rate are used.
        max_gap_s: longest allowed gap between messages of an observed topic, s.

    Returns:
        For each episode of n ticks: "action" (n, A), "position" (n, A), and the values of
        `RosTopics.observation_values` with a first dimension n.

    Raises:
        ConfigError: the bag does not exist or cannot be read; a topic is missing or has messages of
            another type; messages do not fit the configuration; or there is no episode.
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
    """Return the topics of a robot, and check that its bags can be converted."""
    topics = parse_topics(robot.driver)
    if topics is None:
        raise ConfigError(f"robot={robot.name} has no topics; use a robot with the driver ros2.")
    if topics.commanded.type == "TwistStamped":
        raise ConfigError(
            f"robot={robot.name} is commanded by velocities (TwistStamped); bags can be converted "
            "if commands are JointTrajectory or Float64MultiArray."
        )
    return topics


def _index_before(times: np.ndarray, now: float, side: Literal["left", "right"]) -> int:
    """Return the index of the last of the ascending times before `now`; "right" includes `now`."""
    return int(np.searchsorted(times, now, side=side)) - 1


def _read_messages(bag: Path, topics: RosTopics) -> dict[str, list[tuple[float, Any]]]:
    """Read all messages of the configured topics.

    Returns:
        Name of an observed topic, or COMMAND -> its messages as (time in s, message), sorted by
        time.

    Raises:
        ConfigError: a topic has no messages or messages of another type, or the bag is damaged.
    """
    try:
        from rosbags.rosbag2 import Reader
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError as error:
        raise ConfigError("bags need rosbags: pip install 'ebt_policy[ros]'.") from error
    if not bag.exists():
        raise ConfigError(f"{bag} does not exist.")
    sources: dict[str, ObservedTopic | CommandTopic] = {
        **topics.observed,
        COMMAND: topics.commanded,
    }
    types = {t.topic: f"{MESSAGE_PACKAGES[t.type]}/msg/{t.type}" for t in sources.values()}
    messages: dict[str, list[tuple[float, Any]]] = {topic: [] for topic in types}
    # The definitions in the bag are not used, because rosbags may fail on those of other topics.
    store = get_typestore(Stores.LATEST)
    try:
        with Reader(bag) as reader:
            present = sorted({c.topic for c in reader.connections})
            connections = [c for c in reader.connections if c.topic in types]
            for connection in connections:
                message_type, expected = connection.msgtype, types[connection.topic]
                if message_type != expected:
                    raise ConfigError(
                        f"{bag} has messages of type {message_type} on {connection.topic}, but the "
                        f"robot's configuration expects {expected}."
                    )
                if connection.digest not in ("", store.hash_rihs01(message_type)):
                    raise ConfigError(
                        f"{bag} has messages on {connection.topic} whose definition of "
                        f"{message_type} differs from the one in ROS 2."
                    )
            # With an empty list of connections, rosbags would read all messages.
            for connection, nanoseconds, raw in reader.messages(connections) if connections else ():
                message = store.deserialize_cdr(raw, connection.msgtype)
                messages[connection.topic].append((nanoseconds * 1e-9, message))
    except ConfigError:
        raise
    except Exception as error:  # The errors of rosbags and its dependencies have no common base.
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
    """Return the spans (start, end), s, of the episodes: all topics have a message and no gap."""
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


def is_bag(path: Path) -> bool:
    """Return whether a path looks like a bag: a folder of rosbag2, or an MCAP or SQLite file."""
    return path.suffix in (".mcap", ".db3") or (path / "metadata.yaml").is_file()


def write_bags(
    bags: Sequence[Path], robot: Robot, output: Path, max_gap_s: float = MAX_GAP_S
) -> Episodes:
    """Write the episodes of bags to an episode store, and return them.

    Args:
        bags: paths of the bags.
        robot, max_gap_s: see `read_bag`.
        output: path of the store.

    Raises:
        ConfigError: some bags cannot be read; the message lists the first errors.
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
    actions = {name: list(robot.action) for name in ("position", "action")}
    names = {**_topics_of(robot).value_names, **actions}
    attributes = {"rate_hz": robot.rate_hz, "robot": robot.name, "names": names}
    episodes = Episodes(arrays, ends, attributes)
    write_episodes(output, episodes)
    return episodes
