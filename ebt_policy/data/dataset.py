"""Robot data sets of every format behind one interface: `open_dataset`.

A data set has episodes of rows at a constant rate. It declares its features: their names, types,
shapes, roles and units. Numbers are read by episode, frames of cameras by row.

>>> import numpy as np, tempfile
>>> from ebt_policy.data.episode_store import write_episodes
>>> from ebt_policy.data.episodes import Episodes
>>> rows = {"state": np.zeros((5, 3)), "action": np.ones((5, 2))}
>>> with tempfile.TemporaryDirectory() as folder:
...     write_episodes(f"{folder}/demos", Episodes(rows, np.array([2, 5]), {"rate_hz": 10}))
...     with open_dataset(f"{folder}/demos") as dataset:
...         print(dataset.format, dataset.fps, dataset.lengths, *dataset.features)
...         print(dataset.read(1, ["action"])["action"].shape)
zarr 10.0 [2 3] action state
(3, 2)

Shapes: E episodes, L rows of one episode, N rows of all episodes, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ebt_policy.data.zarr_store import EpisodeError
from ebt_policy.io import hub
from ebt_policy.registry import Registry

BATCH_ROWS = 64  # frames of an episode that are decoded at once


class Role(StrEnum):
    """What a feature is used for."""

    STATE = "state"
    IMAGE = "image"
    ACTION = "action"
    OTHER = "other"


@dataclass(frozen=True)
class Feature:
    """A named quantity that every row of a data set has.

    Attributes:
        name: name in the data set.
        dtype: NumPy data type of its numbers; uint8 for frames.
        shape: shape of one row; (H, W, 3) for frames.
        role: the declared role, or a guess from name and shape (see `guess_role`).
        entries: names of its numbers, such as joints; empty if unknown.
        unit: unit of its numbers; "" if unknown.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role
    entries: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        if len(self.entries) != self.size:  # names of other quantities, or untrusted content
            object.__setattr__(self, "entries", ())

    @property
    def size(self) -> int:
        """Number of numbers in one row."""
        return int(np.prod(self.shape))


def entry_names(names: Any, feature: str) -> tuple[str, ...]:
    """Return the names of a feature's numbers from the stored names, feature -> list of names.

    >>> entry_names({"action": ["x", "y"]}, "action"), entry_names(None, "action")
    (('x', 'y'), ())
    """
    stored = names.get(feature) if isinstance(names, dict) else None
    return tuple(map(str, stored)) if isinstance(stored, list) else ()


class Dataset(ABC):
    """Base of data sets. A data set is a context manager that closes its files.

    Attributes:
        format: name of the format in `DATASETS`.
        path: file or folder.
        features: name -> feature, sorted by name.
        lengths: (E,) int64, number of rows of each episode.
        fps: rows per second; None if unknown.
    """

    format: ClassVar[str]
    path: Path
    features: dict[str, Feature]
    lengths: np.ndarray
    fps: float | None

    @classmethod
    @abstractmethod
    def matches(cls, path: Path) -> bool:
        """Return whether a file or folder looks like this format."""

    @abstractmethod
    def __init__(self, path: Path) -> None:
        """Open a data set, without reading its rows.

        Raises:
            EpisodeError: it is malformed or damaged.
        """

    @abstractmethod
    def read(self, episode: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the numbers (L, *shape) of features of one episode.

        Args:
            episode: index in 0..E-1.
            names: features that are no cameras of type video.

        Raises:
            EpisodeError: a file is missing or damaged, or has other rows than declared.
        """

    def frames(self, episode: int, camera: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames (len(rows), H, W, 3) uint8 of an episode.

        Args:
            episode: index in 0..E-1.
            camera: a feature whose role is `Role.IMAGE`.
            rows: increasing indices in 0..L-1.

        Raises:
            EpisodeError: as in `read`.
        """
        return as_frames(self.read(episode, [camera])[camera][np.asarray(rows)], camera)

    def frame_batches(self, episode: int, camera: str) -> Iterator[np.ndarray]:
        """Yield all frames of an episode in order (see `frames`), up to `BATCH_ROWS` at once."""
        length = int(self.lengths[episode])
        for start in range(0, length, BATCH_ROWS):
            yield self.frames(episode, camera, np.arange(start, min(start + BATCH_ROWS, length)))

    def instruction(self, episode: int) -> str:
        """Return the instruction of an episode; "" if there is none."""
        return ""

    def subsets(self) -> dict[str, list[int]]:
        """Return the episodes of each declared subset, by its name."""
        return {}

    @property
    def paths(self) -> list[Path]:
        """All files or folders that the content depends on."""
        return [self.path]

    def close(self) -> None:  # noqa: B027  # a format without open files needs nothing
        """Close all files."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


DATASETS: Registry[type[Dataset]] = Registry("format", "ebt_policy.datasets")
DATASETS.declare("lerobot", "ebt_policy.data.formats.lerobot:LeRobotDataset")
DATASETS.declare("robomimic", "ebt_policy.data.formats.robomimic:RobomimicDataset")
DATASETS.declare("zarr", "ebt_policy.data.formats.zarr:ZarrDataset")


def open_dataset(source: str | Path) -> Dataset:
    """Open a data set, whose format is recognised from its files.

    Args:
        source: a file or folder, or ``hf://USER/NAME[@REVISION]``, a data set on the Hugging Face
            Hub. It is downloaded once, into the cache of huggingface_hub; HF_HUB_OFFLINE=1 uses
            only the cache.

    Raises:
        EpisodeError: nothing is at the path, the download failed, the format is unknown, or the
            data set is damaged.
    """
    path = local_path(source)
    if not path.exists():
        is_name = hub.is_repository_name(str(source))
        hint = f" For the Hugging Face Hub, write hf://{source}." if is_name else ""
        raise EpisodeError(f"{path} does not exist; pass the file or folder of a data set.{hint}")
    for name in DATASETS:
        dataset = DATASETS.get(name)
        if dataset.matches(path):
            return dataset(path)
    raise EpisodeError(
        f"{path} is no data set of a known format ({', '.join(DATASETS)}). A LeRobot data set is a "
        "folder with meta/info.json, an episode store has the arrays data/ and meta/episode_ends, "
        "and a robomimic file is HDF5 with the group data."
    )


def local_path(source: str | Path) -> Path:
    """Return the path of a data set, after downloading it from the Hub if necessary.

    Raises:
        EpisodeError: the download failed.
    """
    if not str(source).startswith(hub.PREFIX):
        return Path(source).expanduser()
    try:
        return hub.download(str(source), "dataset")
    except hub.HubError as error:
        raise EpisodeError(str(error)) from error


def pinned(source: str, path: Path) -> str:
    """Return a source whose content cannot change: a data set on the Hub with its commit.

    Args:
        source: a source of `open_dataset`.
        path: the path of its data set. The cache of the Hub names its folder after the commit.
    """
    if not source.startswith(hub.PREFIX):
        return source
    return f"{source.partition('@')[0]}@{path.name}"


STATE_NAMES = ("state", "obs", "position", "qpos", "proprio", "agent_pos")
ACTION_NAMES = ("action", "actions")


def guess_role(name: str, dtype: str, shape: Sequence[int]) -> Role:
    """Return the role that name, data type and shape of a feature suggest.

    >>> guess_role("observation.images.top", "uint8", (96, 96, 3)).value
    'image'
    >>> guess_role("actions", "float32", (7,)).value, guess_role("timestamp", "float32", (1,)).value
    ('action', 'other')
    """
    if is_frame_shape(shape):
        return Role.IMAGE
    last = name.rpartition(".")[2].rpartition("/")[2]
    if np.dtype(dtype).kind not in "fiub" or len(shape) != 1:
        return Role.OTHER
    if last in ACTION_NAMES:
        return Role.ACTION
    is_observed = name.startswith(("observation.", "obs/")) or last in STATE_NAMES
    return Role.STATE if is_observed else Role.OTHER


def is_frame_shape(shape: Sequence[int]) -> bool:
    """Return whether a shape can be a colour frame, channels last."""
    return len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= 8


def as_frames(values: np.ndarray, camera: str) -> np.ndarray:
    """Return frames (N, H, W, 3) as uint8; numbers must be whole and in 0..255.

    Raises:
        EpisodeError: they are not.
    """
    if values.dtype == np.uint8:
        return values
    frames = values.astype(np.uint8)
    if not np.array_equal(frames, values):
        raise EpisodeError(
            f'the camera "{camera}" has {values.dtype} frames that are not whole numbers from 0 to '
            "255; store uint8."
        )
    return frames


def checked_rate(value: Any, source: str) -> float:
    """Return a rate in rows per second.

    Args:
        value: the declared rate.
        source: name of the file or option, for messages.

    Raises:
        EpisodeError: it is not a positive, finite number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Huge integers cannot be converted to a float.
    if not is_number or not 0 < value < 1e9:
        raise EpisodeError(
            f"{source} has the rate {str(value)[:40]!r}; it must be a positive, finite number of "
            "rows per second."
        )
    return float(value)


def check_names(dataset: Dataset, names: Sequence[str]) -> None:
    """Check that a data set has features.

    Raises:
        EpisodeError: it does not have one.
    """
    if missing := [name for name in names if name not in dataset.features]:
        raise EpisodeError(
            f"{dataset.path} has no {missing[0]}; it has {', '.join(dataset.features)}."
        )
