"""Writer of LeRobotDataset version 3.0, which LeRobot loads and trains on.

See `ebt_policy.data.formats.lerobot_layout` for the files. Several episodes share a file, up to the
sizes that info.json states.

Shapes: L rows of one episode, H x W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ebt_policy.data.dataset import Feature, Role
from ebt_policy.data.formats.lerobot_stats import (
    combine_statistics,
    frame_statistics,
    row_statistics,
)
from ebt_policy.data.formats.writer import DatasetWriter, Frames
from ebt_policy.errors import ConfigError

DATA_MB, VIDEO_MB, CHUNK_SIZE = 100, 200, 1000
PART = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{PART}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{PART}.mp4"
EPISODES_PATH = f"meta/episodes/{PART}.parquet"
# Every second frame is a key frame, so that training reads single frames quickly.
VIDEO_OPTIONS = {"g": "2", "crf": "23"}
SAMPLED_FRAMES = 16  # frames of an episode that statistics are computed from


class Position:
    """The file that is written now, by its chunk and its number in the chunk."""

    def __init__(self) -> None:
        self.chunk_index = self.file_index = 0

    def advance(self) -> None:
        self.file_index += 1
        if self.file_index == CHUNK_SIZE:
            self.chunk_index, self.file_index = self.chunk_index + 1, 0


class LeRobotWriter(DatasetWriter):
    """Writer of a folder in LeRobot's format 3.0."""

    is_folder = True

    def __init__(self, path: Path, features: Sequence[Feature], fps: float | None) -> None:
        if fps is None:
            raise ConfigError(
                "a LeRobot data set needs a rate, which this data set does not state; set fps=N."
            )
        self.check_rate(fps)
        self._root, self._fps = path, round(fps)
        self._numbers = [feature for feature in features if feature.role is not Role.IMAGE]
        self._videos = {
            feature.name: VideoFiles(path, feature.name, self._fps)
            for feature in features
            if feature.role is Role.IMAGE
        }
        self._data = Position()
        self._writer: pq.ParquetWriter | None = None
        self._episodes: list[dict[str, Any]] = []
        self._tasks: dict[str, int] = {}
        self._statistics: list[dict[str, Any]] = []
        self._rows = 0

    @classmethod
    def check_rate(cls, fps: float) -> None:
        if round(fps) != fps:
            raise ConfigError(
                f"a LeRobot data set needs a whole number of rows per second, got {fps:g}; change "
                "the rate, or set fps=N of ebt-convert."
            )

    @classmethod
    def name_of(cls, base: str, role: Role) -> str:
        if role is Role.IMAGE:
            return f"observation.images.{base}"
        return f"observation.{base}" if role is Role.STATE else base

    def add(
        self, rows: Mapping[str, np.ndarray], frames: Mapping[str, Frames], instruction: str
    ) -> None:
        length, episode = len(next(iter(rows.values()))), len(self._episodes)
        task = self._tasks.setdefault(instruction, len(self._tasks))
        index = {
            "timestamp": np.arange(length, dtype=np.float32) / np.float32(self._fps),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode),
            "index": self._rows + np.arange(length),
            "task_index": np.full(length, task),
        }
        place: dict[str, Any] = {}
        statistics = {
            name: row_statistics(values.reshape(length, -1))
            for name, values in {**rows, **index}.items()
            if values.dtype.kind in "biuf"
        }
        for name, batches in frames.items():
            part, sampled = self._videos[name].add(batches, length)
            place |= part
            statistics[name] = frame_statistics(sampled)
        file = self._add_rows({**rows, **index})
        self._episodes.append(
            {
                "episode_index": episode, "tasks": [instruction], "length": length,
                "data/chunk_index": file[0], "data/file_index": file[1],
                "dataset_from_index": self._rows, "dataset_to_index": self._rows + length,
                **place,
                **{
                    f"stats/{name}/{key}": value.tolist()
                    for name, values in statistics.items()
                    for key, value in values.items()
                },
                "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            }
        )  # fmt: skip
        self._statistics.append(statistics)
        self._rows += length

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        for video in self._videos.values():
            video.close()

    def finish(self) -> None:
        self.close()
        meta = self._root / "meta"
        meta.mkdir(exist_ok=True)
        episodes = self._root / EPISODES_PATH.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), episodes)
        pq.write_table(_task_table(self._tasks), meta / "tasks.parquet")
        combined = {
            name: {k: v.tolist() for k, v in values.items()}
            for name, values in combine_statistics(self._statistics).items()
        }
        _write_json(meta / "stats.json", combined)
        _write_json(meta / "info.json", self._info())

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {
            feature.name: {
                "dtype": feature.dtype,
                "shape": list(feature.shape or (1,)),
                "names": list(feature.entries) or None,
            }
            for feature in self._numbers
        }
        for name, video in self._videos.items():
            features[name] = {
                "dtype": "video", "shape": [*video.size, 3],
                "names": ["height", "width", "channels"], "info": video.info(),
            }  # fmt: skip
        index = {"timestamp": "float32"} | dict.fromkeys(
            ("frame_index", "episode_index", "index", "task_index"), "int64"
        )
        features |= {
            name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in index.items()
        }
        count = len(self._episodes)
        return {
            "codebase_version": "v3.0", "robot_type": None, "fps": self._fps,
            "total_episodes": count, "total_frames": self._rows, "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_SIZE, "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB, "splits": {"train": f"0:{count}"},
            "data_path": DATA_PATH, "video_path": VIDEO_PATH if self._videos else None,
            "features": features,
        }  # fmt: skip

    def _add_rows(self, columns: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Write the rows of an episode as one row group, and return the chunk and the file."""
        table = pa.table({name: _column(values) for name, values in columns.items()})
        if self._writer is not None and self._file_size() > DATA_MB * 2**20:
            self._writer.close()
            self._writer = None
            self._data.advance()
        if self._writer is None:
            file = self._root / DATA_PATH.format(**vars(self._data))
            file.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(file, table.schema)
        self._writer.write_table(table)
        return self._data.chunk_index, self._data.file_index

    def _file_size(self) -> int:
        return (self._root / DATA_PATH.format(**vars(self._data))).stat().st_size


class VideoFiles:
    """The videos of a camera; each has the frames of several episodes.

    Args:
        root: folder of the data set.
        name: name of the camera.
        fps: frames per second.

    Attributes:
        size: H and W. An odd last row or column is cut off, as the codec requires.
    """

    def __init__(self, root: Path, name: str, fps: int) -> None:
        self._root, self._name, self._fps = root, name, fps
        self._position = Position()
        self._container: Any = None
        self._stream: Any = None
        self._frames = 0
        self.size: tuple[int, int] = (0, 0)

    def add(self, batches: Frames, length: int) -> tuple[dict[str, Any], np.ndarray]:
        """Append the frames of an episode.

        Returns:
            Its place, as columns of the list of episodes, and some frames (n, H, W, 3).
        """
        if self._container is not None and self._path.stat().st_size > VIDEO_MB * 2**20:
            self.close()
            self._position.advance()
        start, row, sampled = self._frames, 0, []
        chosen = set(np.linspace(0, length - 1, min(SAMPLED_FRAMES, length)).astype(int).tolist())
        for batch in batches:
            for frame in batch:
                self._encode(frame)
                if row in chosen:
                    sampled.append(frame[: self.size[0], : self.size[1]])
                row += 1
        prefix = f"videos/{self._name}"
        place = {
            f"{prefix}/chunk_index": self._position.chunk_index,
            f"{prefix}/file_index": self._position.file_index,
            f"{prefix}/from_timestamp": start / self._fps,
            f"{prefix}/to_timestamp": self._frames / self._fps,
        }
        return place, np.stack(sampled)

    def close(self) -> None:
        """Complete the current video, if there is one."""
        container, self._container, self._frames = self._container, None, 0
        if container is not None:
            with container:
                container.mux(self._stream.encode())

    def info(self) -> dict[str, Any]:
        """Return the description of the videos for info.json."""
        return {
            "video.height": self.size[0], "video.width": self.size[1], "video.channels": 3,
            "video.codec": "h264", "video.pix_fmt": "yuv420p", "video.fps": self._fps,
            "video.is_depth_map": False, "has_audio": False,
        }  # fmt: skip

    @property
    def _path(self) -> Path:
        return self._root / VIDEO_PATH.format(video_key=self._name, **vars(self._position))

    def _encode(self, frame: np.ndarray) -> None:
        if self._container is None:
            self.size = (frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._path), "w", format="mp4")
            self._stream = self._container.add_stream(
                "h264", rate=Fraction(self._fps), options=VIDEO_OPTIONS
            )
            self._stream.pix_fmt = "yuv420p"
            self._stream.height, self._stream.width = self.size
        even = np.ascontiguousarray(frame[: self.size[0], : self.size[1]])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        self._frames += 1


def _task_table(tasks: Mapping[str, int]) -> pa.Table:
    """Return the numbers of the instructions, with the instruction as the index for pandas."""
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": n, "field_name": n, "pandas_type": p, "numpy_type": k, "metadata": None}
        for n, (p, k) in kinds.items()
    ]
    table = pa.table({"task_index": list(tasks.values()), "task": list(tasks)})
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _column(values: np.ndarray) -> pa.Array:
    """Return rows (L, ...) as a column: numbers, or nested lists of constant length."""
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 1 and values.ndim <= 2:
        return pa.array(flat[:, 0])
    column = pa.array(flat.reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", "utf-8")
