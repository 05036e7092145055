"""LeRobotDataset, versions 2.0, 2.1 and 3.0 (see `lerobot_layout` for the files)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ebt_policy.data.dataset import DATASETS, Dataset, check_names
from ebt_policy.data.formats.lerobot_layout import (
    INFO,
    Episode,
    read_episodes_index,
    read_info,
)
from ebt_policy.data.video_frames import decode_frames
from ebt_policy.data.zarr_store import EpisodeError
from ebt_policy.io.paths import reason

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")


@DATASETS.register("lerobot")
class LeRobotDataset(Dataset):
    """A LeRobotDataset in a folder."""

    format = "lerobot"

    @classmethod
    def matches(cls, path: Path) -> bool:
        return (path / INFO).is_file()

    def __init__(self, path: Path) -> None:
        self.path, self.info = path, read_info(path)
        self.episodes = read_episodes_index(self.info)
        self.features, self.fps = self.info.features, self.info.fps
        self.lengths = np.array([episode.length for episode in self.episodes], dtype=np.int64)
        # Episodes are mostly read in order, and many of them share a file in version 3.0.
        self._table: tuple[Path, tuple[str, ...], pa.Table] | None = None

    def read(self, episode: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        check_names(self, names)
        if videos := [name for name in names if name in self.info.videos]:
            raise ValueError(f"{videos[0]} is a video; read it with frames().")
        place = self.episodes[episode]
        table = self._rows(place, tuple(names))
        return {name: self._array(table[name], name, place) for name in names}

    def frames(self, episode: int, camera: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        check_names(self, [camera])
        place = self.episodes[episode]
        if camera in self.info.images:
            column = self._rows(place, (camera,))[camera].take(pa.array(np.asarray(rows)))
            return self._decode_column(column, camera, place)
        segment = place.videos[camera]
        if not segment.file.is_file():
            raise EpisodeError(
                f"{segment.file} is missing: it has the frames of {camera} in episode "
                f"{place.index}."
            )
        times = segment.start + np.asarray(rows) / self.info.fps
        return decode_frames(segment.file, times, self.info.fps, self.features[camera].shape[:2])

    def instruction(self, episode: int) -> str:
        return self.episodes[episode].instruction

    def close(self) -> None:
        self._table = None

    def _rows(self, place: Episode, names: tuple[str, ...]) -> pa.Table:
        """Return the rows of one episode."""
        file = place.rows.file
        if self._table is None or self._table[:2] != (file, names):
            columns = ["episode_index", *names]
            try:
                present = pq.read_schema(file).names
                if missing := [name for name in columns if name not in present]:
                    raise EpisodeError(f"{file} has no column {missing[0]}, which info.json has.")
                self._table = (file, names, pq.read_table(file, columns=columns))
            except EpisodeError:
                raise
            except Exception as error:  # errors of pyarrow share no base class
                raise EpisodeError(
                    f"{file} cannot be read ({reason(error)}): it has the rows of episode "
                    f"{place.index}; copy it again."
                ) from error
        start = int(place.rows.start)
        rows = self._table[2].slice(start, place.length)
        indices = rows["episode_index"].to_numpy()
        if len(rows) < place.length or not np.array_equal(np.unique(indices), [place.index]):
            raise EpisodeError(
                f"{file}: the {place.length} rows from row {start} on should belong to episode "
                f"{place.index}, but the file has {len(rows)} there, of the episodes "
                f"{np.unique(indices).tolist()}."
            )
        # A file of version 2 holds one episode.
        if self.info.version[0] == 2 and len(self._table[2]) != place.length:
            raise EpisodeError(
                f"{file} has {len(self._table[2])} rows, but the length of episode {place.index} "
                f"is {place.length}."
            )
        return rows

    def _decode_column(self, column: pa.ChunkedArray, name: str, place: Episode) -> np.ndarray:
        """Return the frames (L, H, W, 3) of a column of encoded images."""
        problem = f"{place.rows.file}: {name} in episode {place.index}"
        shape = self.features[name].shape
        return np.stack([_decode(row, shape, problem) for row in column.to_pylist()])

    def _array(self, column: pa.ChunkedArray, name: str, place: Episode) -> np.ndarray:
        """Return a column as an array (L, *shape)."""
        feature = self.features[name]
        problem = f"{place.rows.file}: {name} in episode {place.index}"
        if name in self.info.images:
            return self._decode_column(column, name, place)
        try:
            values = column.combine_chunks()
            while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
                values = values.flatten()
            array = np.asarray(values.to_numpy(zero_copy_only=False))
            array = array.reshape(place.length, *feature.shape)
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise EpisodeError(
                f"{problem} does not have the shape {feature.shape} that info.json declares "
                f"({reason(error)})."
            ) from error
        if array.dtype.kind not in "biuf":
            raise EpisodeError(f"{problem} is not numeric ({array.dtype}).")
        return array


def _decode(row: Any, shape: tuple[int, ...], problem: str) -> np.ndarray:
    """Return a frame (H, W, 3) that is stored as the bytes of an image file."""
    content = row.get("bytes") if isinstance(row, dict) else row
    if not isinstance(content, bytes):
        raise EpisodeError(f"{problem} has a frame without image bytes.")
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if (image.height, image.width) != shape[:2]:
                raise EpisodeError(
                    f"{problem} has a frame of {image.height} x {image.width}, but info.json "
                    f"declares {shape[0]} x {shape[1]}."
                )
            return np.asarray(image.convert("RGB"))
    except EpisodeError:
        raise
    except Exception as error:  # errors of Pillow share no base class
        raise EpisodeError(f"{problem} has a damaged frame ({reason(error)}).") from error
