"""Conversion between formats of data sets.

Shapes: L rows of one episode.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from ebt_policy.data.dataset import Dataset, Role, checked_rate, open_dataset
from ebt_policy.data.episodes import check_finite
from ebt_policy.data.formats.writer import DatasetWriter, base_name
from ebt_policy.data.zarr_store import EpisodeError
from ebt_policy.errors import ConfigError
from ebt_policy.io.atomic_write import atomic_folder, atomic_path
from ebt_policy.io.output import writable_folder
from ebt_policy.io.progress import ReportedProgress

FORMATS = ("lerobot", "robomimic", "zarr")


def convert(
    source: str | Path, destination: Path, *, to: str | None = None, fps: float | None = None
) -> Dataset:
    """Convert a data set to another format, and return the new one, open.

    Args:
        source: a data set of any format, as for `open_dataset`.
        destination: new file or folder.
        to: one of `FORMATS`; None to choose by the name: ``.hdf5``, ``.zarr`` or ``.zarr.zip``,
            else LeRobot.
        fps: rows per second; None if the source states it.

    Raises:
        ConfigError: an option is invalid, or the destination exists.
        EpisodeError: the source cannot be read. Nothing is left at the destination.
    """
    writer_class = check_destination(destination, to)
    if fps is not None:
        checked_rate(fps, "fps")
    zipped = destination.suffix == ".zip"
    with open_dataset(source) as dataset, writable_folder(destination.parent, "destination"):
        if writer_class.is_folder and not zipped:
            with atomic_folder(destination) as folder:
                _write(dataset, writer_class, folder, fps)
        elif zipped:
            with TemporaryDirectory(dir=destination.parent, prefix=".writing_") as folder:
                _write(dataset, writer_class, Path(folder), fps)
                with atomic_path(destination) as file:
                    _pack(Path(folder), file)
        else:
            with atomic_path(destination) as file:
                _write(dataset, writer_class, file, fps)
    return open_dataset(destination)


def check_destination(
    destination: Path, to: str | None = None, fps: float | None = None
) -> type[DatasetWriter]:
    """Return the writer of a new data set, before any work starts; see `convert`.

    Args:
        destination, to: see `convert`.
        fps: rows per second, if they are known.

    Raises:
        ConfigError: the format is unknown, or the destination exists or cannot have it.
    """
    to = to or format_of(destination)
    if to not in FORMATS:
        raise ConfigError(f"to={to} is unknown; use {', '.join(FORMATS)}.")
    if destination.exists():
        raise ConfigError(f"{destination} exists; give a new file or folder.")
    if destination.suffix == ".zip" and to != "zarr":
        raise ConfigError(f"{destination}: only an episode store can be a zip.")
    writer_class = _writer_class(to)
    if fps is not None:
        writer_class.check_rate(fps)
    return writer_class


def format_of(destination: Path) -> str:
    """Return the format that the name of a new data set suggests.

    >>> format_of(Path("a.hdf5")), format_of(Path("a.zarr.zip")), format_of(Path("a"))
    ('robomimic', 'zarr', 'lerobot')
    """
    if destination.suffix in (".hdf5", ".h5"):
        return "robomimic"
    return "zarr" if destination.suffix in (".zarr", ".zip") else "lerobot"


def _write(
    dataset: Dataset, writer_class: type[DatasetWriter], path: Path, fps: float | None
) -> None:
    names = new_names(dataset, writer_class)
    features = [replace(dataset.features[old], name=new) for old, new in names.items()]
    writer = writer_class(path, features, dataset.fps if fps is None else fps)
    cameras = [name for name in names if dataset.features[name].role is Role.IMAGE]
    numbers = [name for name in names if name not in cameras]
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with ReportedProgress(*columns) as progress:
            task = progress.add_task("converting episodes", total=len(dataset))
            for episode in range(len(dataset)):
                rows = dataset.read(episode, numbers)
                for name in numbers:
                    check_finite(rows[name], name, str(dataset.path), episode)
                writer.add(
                    {names[name]: rows[name] for name in numbers},
                    {names[name]: dataset.frame_batches(episode, name) for name in cameras},
                    dataset.instruction(episode),
                )
                progress.update(task, completed=episode + 1)
        writer.finish()
    finally:
        writer.close()


def new_names(dataset: Dataset, writer_class: type[DatasetWriter]) -> dict[str, str]:
    """Return the name of each feature in the new format.

    Raises:
        EpisodeError: two features would have the same name.
    """
    names: dict[str, str] = {}
    for old, feature in dataset.features.items():
        new = writer_class.name_of(base_name(old, feature.role), feature.role)
        if new in names.values():
            other = next(key for key, value in names.items() if value == new)
            raise EpisodeError(
                f"{dataset.path}: {other} and {old} would both be named {new}; rename one of them."
            )
        names[old] = new
    return names


def _pack(folder: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())


def _writer_class(to: str) -> type[DatasetWriter]:
    if to == "lerobot":
        from ebt_policy.data.formats.lerobot_writer import LeRobotWriter

        return LeRobotWriter
    if to == "robomimic":
        from ebt_policy.data.formats.robomimic_writer import RobomimicWriter

        return RobomimicWriter
    from ebt_policy.data.formats.zarr_writer import ZarrWriter

    return ZarrWriter
