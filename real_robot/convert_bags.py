"""Convert ROS 2 bags to episodes.

``python -m ebt_policy.real_robot.convert_bags robot=ros2_push_t bag=BAG output=STORE``

Reads what the robot's configuration observes and commands (MCAP or SQLite, by `rosbags`; no ROS is
needed), at the robot's rate; ``bag=`` may be repeated. A bag is an episode, or several where it is
cut because an observed topic was silent for longer than ``max_gap_s``. Message times are the times
of recording.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from ebt_policy.cli import hydra_arguments, report_errors
from ebt_policy.config import options
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes, check_episodes
from ebt_policy.errors import ConfigError
from ebt_policy.io.output import output_store
from ebt_policy.io.paths import listed, reason
from ebt_policy.real_robot.drivers.ros2 import PACKAGES, observed
from ebt_policy.real_robot.drivers.ros_messages import MessageError
from ebt_policy.real_robot.robots import Robot

console = Console()

COMMAND = "command "  # no part has this name
MAX_GAP_S = 1.0
Times = dict[str, np.ndarray]  # name of a part, or COMMAND -> seconds of its messages, in order


def read_bag(bag: Path, robot: Robot, max_gap_s: float = MAX_GAP_S) -> list[dict[str, np.ndarray]]:
    """Episodes of a bag: "obs" (n, Do), "action" (n, A), "position" (n, A), cameras, and what
    `observed` gives.

    At each tick the newest messages until then are what was observed, and the newest command
    until the next tick what was done. An episode begins with the first tick that has all of them,
    and ends with the last command. Where an observed topic is silent for longer than `max_gap_s`,
    because it failed or the clock was set, one episode ends and the next begins; a warning says so.

    Raises:
        ConfigError: no bag, a topic that is not in it or has messages of another type, messages
            that the configuration cannot read, or no time at which all of them were there.
    """
    topics = robot.topics
    if topics.out.type == "TwistStamped":
        raise ConfigError(
            f"{robot.name} is commanded by velocities (TwistStamped); bags become episodes where "
            "commands are goals, of JointTrajectory or Float64MultiArray."
        )
    arrived = _arrived(bag, robot)
    times = {name: np.array([seconds for seconds, _ in rows]) for name, rows in arrived.items()}
    spans = _spans(bag, robot, times, max_gap_s)
    episodes = []
    for start, end in spans:
        rows = []
        for tick in range(int((end - start) * robot.rate_hz + 1e-6) + 1):
            now = start + tick / robot.rate_hz
            newest = {
                name: arrived[name][_newest(times[name], now + 1e-9, "right")][1]
                for name in topics.parts
            }
            last = _newest(times[COMMAND], now + 1 / robot.rate_hz - 1e-9, "left")
            try:
                read = {name: part.read(newest[name]) for name, part in topics.parts.items()}
                position = read[topics.position]
                action = topics.out.read(arrived[COMMAND][last][1], position)
            except MessageError as error:
                raise ConfigError(f"{bag}: {error}.") from error
            rows.append({**observed(topics, read), "position": position, "action": action})
        episode = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        check_episodes(episode, np.array([len(rows)]), f"{bag}, {start:.2f} to {end:.2f} s")
        episodes.append(episode)
    return episodes


def _newest(times: np.ndarray, now: float, side: Any) -> int:
    return int(np.searchsorted(times, now, side=side)) - 1


def _arrived(bag: Path, robot: Robot) -> dict[str, list[tuple[float, Any]]]:
    """Messages by the name of a part, or COMMAND, in order of time: (seconds, message).

    Raises:
        ConfigError: a topic has no messages, or some of another type; or the bag is damaged.
    """
    try:
        from rosbags.rosbag2 import Reader
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError as error:
        raise ConfigError("bags are read by rosbags: pip install rosbags.") from error
    if not bag.exists():
        raise ConfigError(f"there is no bag at {bag}.")
    sources = {**robot.topics.parts, COMMAND: robot.topics.out}
    types = {part.topic: f"{PACKAGES[part.type]}/msg/{part.type}" for part in sources.values()}
    messages: dict[str, list[tuple[float, Any]]] = {topic: [] for topic in types}
    # Not from the definitions in the bag: those of other topics may be beyond rosbags.
    store = get_typestore(Stores.LATEST)
    try:
        with Reader(bag) as reader:
            present = sorted({c.topic for c in reader.connections})
            wanted = [c for c in reader.connections if c.topic in types]
            for connection in wanted:
                kind, known = connection.msgtype, types[connection.topic]
                if kind != known:
                    raise ConfigError(
                        f"{bag} has messages of type {kind} on {connection.topic}, the robot's "
                        f"configuration reads {known}."
                    )
                if connection.digest not in ("", store.hash_rihs01(kind)):
                    raise ConfigError(
                        f"{bag} has messages on {connection.topic} whose definition of {kind} is "
                        "not that of ROS 2."
                    )
            # Of no connections rosbags would read all there are.
            for connection, nanoseconds, raw in reader.messages(wanted) if wanted else ():
                message = store.deserialize_cdr(raw, connection.msgtype)
                messages[connection.topic].append((nanoseconds * 1e-9, message))
    except ConfigError:
        raise
    except Exception as error:  # those of rosbags and of what it stands on share no base
        raise ConfigError(f"{bag} cannot be read ({reason(error)}).") from error
    if silent := [topic for topic, rows in messages.items() if not rows]:
        raise ConfigError(
            f"{bag} has no messages on {', '.join(silent)}; its topics are "
            f"{', '.join(present) or 'none'}."
        )
    return {
        name: sorted(messages[part.topic], key=lambda row: row[0]) for name, part in sources.items()
    }


def _spans(bag: Path, robot: Robot, times: Times, max_gap_s: float) -> list[tuple[float, float]]:
    """From when to when all is known, in seconds: between gaps, from a command to the last one."""
    gaps = []
    for name, part in robot.topics.parts.items():
        until = np.append(times[name], max(times[name][-1], times[COMMAND][-1]))
        for i in np.flatnonzero(np.diff(until) > max_gap_s):
            gaps.append((until[i], until[i + 1], part.topic))
    spans, start = [], -np.inf
    for silent, again, _ in [*sorted(gaps), (np.inf, np.inf, "")]:
        within = {name: at[(at >= start) & (at <= silent)] for name, at in times.items()}
        if all(map(len, within.values())):
            first, last = max(at[0] for at in within.values()), within[COMMAND][-1]
            if first <= last:
                spans.append((first, min(last, silent)))
        start = max(start, again)
    if gaps:
        silent, again, topic = max(gaps, key=lambda gap: gap[1] - gap[0])
        warnings.warn(
            f"{bag} is cut into {len(spans)} episodes where a topic is silent for more than "
            f"max_gap_s={max_gap_s:g}; the longest gap is {again - silent:,.2f} s without {topic}, "
            f"{silent - min(at[0] for at in times.values()):.2f} s from the start.",
            stacklevel=3,
        )
    if not spans:
        seen = [f"{name.strip()} from {at[0]:.2f} to {at[-1]:.2f} s" for name, at in times.items()]
        raise ConfigError(
            f"{bag} gives no episode: no command was sent after all was observed, without a gap of "
            f"more than max_gap_s={max_gap_s:g} ({', '.join(seen)})."
        )
    return spans


def convert(
    bags: Sequence[Path], robot: Robot, output: Path, max_gap_s: float = MAX_GAP_S
) -> Episodes:
    """All bags as one store.

    Raises:
        ConfigError: the first few bags that cannot be read, each as by `read_bag`.
        EpisodeError: the output cannot be written.
    """
    if robot.driver.get("name") != "ros2":
        raise ConfigError(f"{robot.name} has no topics; use a robot of the driver ros2.")
    if not (isinstance(max_gap_s, int | float) and 0 < max_gap_s < np.inf):
        raise ConfigError(f"max_gap_s must be positive, in seconds, got {max_gap_s}.")
    parts, problems = [], []
    for bag in track(bags, "reading", disable=len(bags) < 2):
        try:
            parts += read_bag(bag, robot, max_gap_s)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(listed(problems))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = np.cumsum([len(part["action"]) for part in parts])
    attributes = {"rate_hz": robot.rate_hz, "robot": robot.name, "action_names": robot.action}
    episodes = Episodes(arrays, ends, attributes)
    write_episodes(output, episodes)
    return episodes


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="bags")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        given: Any = OmegaConf.to_container(cfg, resolve=True)
        robot = options(Robot, given["robot"], "robot")
        if not given["bag"] or not given["output"]:
            raise ConfigError("missing required option bag=BAG or output=STORE.")
        bags = [given["bag"]] if isinstance(given["bag"], str) else given["bag"]
        output = Path(given["output"])
        with output_store(output, "output"):
            episodes = convert([Path(bag) for bag in bags], robot, output, given["max_gap_s"])
        steps = int(episodes.ends[-1])
        console.print(f"{output}: {len(episodes)} episodes, {steps} steps", soft_wrap=True)


def main() -> None:
    with report_errors():
        sys.argv[1:] = hydra_arguments(sys.argv[1:], "bag")
    _main()


if __name__ == "__main__":
    main()
