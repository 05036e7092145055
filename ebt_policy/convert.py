"""Convert a data set: ``python -m ebt_policy.convert SOURCE DESTINATION``.

Sources are data sets of any format (see `ebt_policy.data.convert`), or bags of ROS 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ebt_policy.cli import Entry, run_entry
from ebt_policy.config import options
from ebt_policy.errors import ConfigError
from ebt_policy.io.output import writable_folder

if TYPE_CHECKING:
    from ebt_policy.data.dataset import Dataset

console = Console()


@dataclass(frozen=True)
class ConvertConfig:
    """The options of ``configs/convert.yaml``, which describes them."""

    source: str | list[str] | None
    destination: str | None
    to: str | None
    fps: float | None
    max_gap_s: float
    robot: dict[str, Any] | None = None


def run(config: dict[str, Any]) -> None:
    """Convert a data set as configured.

    Raises:
        UserError: an option is missing, or the data cannot be read or written.
    """
    settings = options(ConvertConfig, config, "the configuration")
    if not settings.source or settings.destination is None:
        raise ConfigError("missing arguments; write ebt-convert SOURCE DESTINATION.")
    from ebt_policy.data.convert import convert  # slow to import
    from ebt_policy.real_robot.bags import is_bag

    sources = [settings.source] if isinstance(settings.source, str) else settings.source
    destination = Path(settings.destination).expanduser()
    if any(is_bag(Path(source)) for source in sources):
        _convert_bags(sources, destination, settings)
        return
    if len(sources) > 1:
        raise ConfigError(
            f"{len(sources)} sources, of which none is a bag; only bags are converted together."
        )
    if settings.robot is not None:
        raise ConfigError(f"robot= is for bags, and {sources[0]} is not one; remove it.")
    with convert(sources[0], destination, to=settings.to, fps=settings.fps) as dataset:
        _report(destination, dataset)


def _convert_bags(sources: Sequence[str], destination: Path, settings: ConvertConfig) -> None:
    """Write the episodes of bags, by way of an episode store."""
    from ebt_policy.data.convert import check_destination, convert
    from ebt_policy.real_robot.bags import write_bags
    from ebt_policy.real_robot.robots import Robot

    if settings.robot is None:
        raise ConfigError(
            "bags need robot=NAME, whose configuration describes the topics, such as "
            "robot=ros2_push_t."
        )
    if settings.fps is not None:
        raise ConfigError(f"fps={settings.fps}: bags have the rate of the robot; remove fps.")
    robot = options(Robot, settings.robot, "robot")
    check_destination(destination, settings.to, robot.rate_hz)
    with (
        writable_folder(destination.parent, "destination"),
        TemporaryDirectory(dir=destination.parent, prefix=".converting_") as folder,
    ):
        store = Path(folder) / "bags.zarr"
        write_bags([Path(source) for source in sources], robot, store, settings.max_gap_s)
        with convert(store, destination, to=settings.to) as dataset:
            _report(destination, dataset)


def _report(destination: Path, dataset: Dataset) -> None:
    console.print(
        f"{destination}: {len(dataset)} episodes, {int(dataset.lengths.sum()):,} rows, "
        f"{dataset.format} format", markup=False, soft_wrap=True,
    )  # fmt: skip


def named_arguments(arguments: Sequence[str]) -> list[str]:
    """Return arguments with names for the paths, of which the last is the destination.

    >>> named_arguments(["a", "b", "fps=10"])
    ['source=a', 'destination=b', 'fps=10']
    >>> named_arguments(["monday.mcap", "tuesday.mcap", "demos", "robot=ros2_push_t"])
    ['source=monday.mcap', 'source=tuesday.mcap', 'destination=demos', 'robot=ros2_push_t']
    """
    is_path = [
        not a.startswith("-") and ("=" not in a or Path(a).expanduser().exists()) for a in arguments
    ]
    # The value of a flag such as --config-dir DIR is not a path to convert.
    for i in range(1, len(arguments)):
        if arguments[i - 1] in ("--config-dir", "--module", "--cfg", "-c"):
            is_path[i] = False
    num_sources = max(1, sum(is_path) - 1)
    named, count = [], 0
    for argument, names_path in zip(arguments, is_path, strict=True):
        if names_path:
            count += 1
            name = "source" if count <= num_sources else "destination"
            named.append(f"{name}={argument}")
        else:
            named.append(argument)
    return named


def main() -> None:
    """Run the command line."""
    sys.argv[1:] = named_arguments(sys.argv[1:])
    run_entry(
        Entry(
            "ebt-convert",
            "convert",
            "Convert data sets between LeRobot, robomimic HDF5 and episode stores, and ROS 2 bags "
            "to any of them.",
            (
                "recordings/bottle bottle.zarr",
                "demos/lift.hdf5 lerobot/lift",
                "runs/recording.zarr lerobot/mine fps=10",
                "monday.mcap tuesday.mcap lerobot/mine robot=ros2_push_t",
            ),
            lambda config, _overrides: run(config),
            repeated=("source",),
        )
    )


if __name__ == "__main__":
    main()
