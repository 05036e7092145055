"""The metadata of a LeRobotDataset, versions 2.0, 2.1 and 3.0.

    meta/info.json                 version, fps, features, templates of paths
    meta/episodes.jsonl            2.x: length and instructions of each episode
    meta/episodes/**/*.parquet     3.0: the same, and where its rows and frames are

Paths of other files come from the templates in info.json. See
https://huggingface.co/docs/lerobot/lerobot-dataset-v3 for the format.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ebt_policy.data.dataset import Feature, Role, checked_rate, guess_role
from ebt_policy.data.zarr_store import EpisodeError
from ebt_policy.io.paths import reason

INFO = Path("meta/info.json")
# Bookkeeping columns of every data set.
INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
UNREADABLE = "unreadable"  # features that are ignored, such as depth images and texts
_FIELD = re.compile(
    r"\{(episode_chunk|episode_index|chunk_index|file_index|video_key)(?::0?(\d{1,2})d)?\}"
)
_MOST_ROWS = 10**9


@dataclass(frozen=True)
class Segment:
    """The place of an episode in a file that several episodes share.

    Attributes:
        file: the file.
        start: first row in a data file, or start time in seconds in a video.
    """

    file: Path
    start: float = 0


@dataclass(frozen=True)
class Episode:
    """One episode: its number of rows, its files, and its instruction.

    Attributes:
        index: number of the episode in the data set's own count.
        length: number of rows.
        rows: place of its rows.
        videos: camera -> place of its frames.
        instruction: what the robot was asked to do; "" if unknown.
    """

    index: int
    length: int
    rows: Segment
    videos: Mapping[str, Segment]
    instruction: str


@dataclass(frozen=True)
class Info:
    """The content of info.json.

    Attributes:
        root: folder of the data set.
        version: (2, 0), (2, 1) or (3, 0).
        fps: rows per second.
        features: name -> feature, sorted by name, without `INDEX_COLUMNS`.
        videos: names of the features that are stored as videos.
        images: names of the features that are stored as encoded images.
        content: the JSON object.
    """

    root: Path
    version: tuple[int, int]
    fps: float
    features: dict[str, Feature]
    videos: tuple[str, ...]
    images: tuple[str, ...]
    content: Mapping[str, Any]

    def file(self, template: str, **fields: int | str) -> Path:
        """Return the file that a template of info.json describes.

        Args:
            template: ``data_path`` or ``video_path``.
            fields: values of the fields of the template.

        Raises:
            EpisodeError: the template is missing or names other fields, or the file lies outside
                of the data set.
        """
        text = self.content.get(template)
        if not isinstance(text, str):
            raise EpisodeError(f"{self.root / INFO} has no {template}.")

        def fill(match: re.Match[str]) -> str:
            name, width = match.groups()
            if name not in fields:
                raise EpisodeError(
                    f"{self.root / INFO}: {template}={text} has the unknown field {name}."
                )
            return str(fields[name]).zfill(int(width or 0))

        path = _FIELD.sub(fill, text)
        if "{" in path:
            raise EpisodeError(
                f"{self.root / INFO}: {template}={text} is not a template of a path with the "
                f"fields {', '.join(fields)}."
            )
        return inside(self.root, path)


def inside(root: Path, path: str) -> Path:
    """Return a file of a data set.

    Links may lead to other files of the same data set, or to the files of the hub's cache in which
    the data set lies.

    Raises:
        EpisodeError: the file lies elsewhere.
    """
    file, home = root / path, root.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # links lead to the blobs in the cache of the hub
        allowed.append(home.parent.parent / "blobs")
    try:
        resolved = file.resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a null byte, or a loop of links
        raise EpisodeError(f"{root} names {path[:80]!r}, which is no path.") from error
    if not any(resolved.is_relative_to(folder) for folder in allowed):
        raise EpisodeError(f"{root} names {path}, which lies outside of it; copy the file into it.")
    return file


def read_info(root: Path) -> Info:
    """Read and check info.json.

    Raises:
        EpisodeError: it is damaged, or its version, rate or features cannot be used.
    """
    file = root / INFO
    content = _read_json(file)
    version = content.get("codebase_version")
    match = re.fullmatch(r"v?(\d{1,3})\.(\d{1,3})(?:\.\d+)?", str(version))
    number = (int(match[1]), int(match[2])) if match else None
    if number not in ((2, 0), (2, 1), (3, 0)):
        raise EpisodeError(
            f"{file} has codebase_version={version!r}; versions v2.0, v2.1 and v3.0 can be read. "
            "Convert the data set with LeRobot."
        )
    fps = checked_rate(content.get("fps"), str(file))
    declared = content.get("features")
    if not isinstance(declared, dict) or not declared:
        raise EpisodeError(f"{file} has no features.")
    features, videos, images = {}, [], []
    for name in sorted(set(declared) - set(INDEX_COLUMNS)):
        kind, shape = _kind_and_shape(file, name, declared[name])
        if kind == UNREADABLE:
            continue
        if kind in ("video", "image"):
            (videos if kind == "video" else images).append(name)
            features[name] = Feature(name, "uint8", shape, Role.IMAGE)
        else:
            entries = _entry_names(declared[name].get("names"), shape)
            role = guess_role(name, kind, shape)
            features[name] = Feature(name, kind, shape, role, entries)
    return Info(root, number, float(fps), features, tuple(videos), tuple(images), content)


def read_episodes_index(info: Info) -> list[Episode]:
    """Read where the rows and frames of each episode are.

    Raises:
        EpisodeError: the list of episodes is missing or damaged.
    """
    read = _read_episodes_v3 if info.version[0] == 3 else _read_episodes_v2
    episodes = sorted(read(info), key=lambda episode: episode.index)
    if not episodes:
        raise EpisodeError(f"{info.root} has no episodes.")
    indices = [episode.index for episode in episodes]
    if len(set(indices)) < len(indices):
        repeated = next(i for i in indices if indices.count(i) > 1)
        raise EpisodeError(f"{info.root} lists the episode {repeated} twice.")
    for episode in episodes:
        if not 0 < episode.length < _MOST_ROWS:
            raise EpisodeError(
                f"{info.root}: episode {episode.index} has the length {episode.length}."
            )
    return episodes


def _read_episodes_v2(info: Info) -> list[Episode]:
    chunk_size = info.content.get("chunks_size", 1000)
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise EpisodeError(f"{info.root / INFO} has chunks_size={chunk_size!r}.")
    episodes = []
    for line in _read_json_lines(info.root / "meta/episodes.jsonl"):
        index, length = (_integer(info, line, key) for key in ("episode_index", "length"))
        place = {"episode_chunk": index // chunk_size, "episode_index": index}
        videos = {
            name: Segment(info.file("video_path", video_key=name, **place)) for name in info.videos
        }
        rows = Segment(info.file("data_path", **place))
        episodes.append(Episode(index, length, rows, videos, _first_text(line.get("tasks"))))
    return episodes


def _read_episodes_v3(info: Info) -> list[Episode]:
    folder = info.root / "meta/episodes"
    files = sorted(folder.glob("**/*.parquet"))
    if not files:
        raise EpisodeError(f"{folder} has no parquet files.")
    columns = [
        "episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index",
        *(
            f"videos/{name}/{part}"
            for name in info.videos
            for part in ("chunk_index", "file_index", "from_timestamp")
        ),
    ]  # fmt: skip
    rows: list[dict[str, Any]] = []
    for file in files:
        inside(info.root, str(file.relative_to(info.root)))
        try:
            schema = pq.read_schema(file).names
            if missing := [name for name in columns if name not in schema]:
                raise EpisodeError(f"{file} has no column {missing[0]}.")
            rows += pq.read_table(
                file, columns=[*columns, *(["tasks"] if "tasks" in schema else [])]
            ).to_pylist()
        except EpisodeError:
            raise
        except Exception as error:  # errors of pyarrow share no base class
            raise EpisodeError(f"{file} cannot be read ({reason(error)}).") from error
    first_rows: dict[Path, int] = {}
    places = []
    for row in rows:
        chunk, number = (_integer(info, row, f"data/{k}_index") for k in ("chunk", "file"))
        file = info.file("data_path", chunk_index=chunk, file_index=number)
        start = _integer(info, row, "dataset_from_index")
        first_rows[file] = min(start, first_rows.get(file, start))
        places.append((file, start))
    return [
        Episode(
            _integer(info, row, "episode_index"),
            _integer(info, row, "length"),
            Segment(file, start - first_rows[file]),
            {name: _video_segment(info, row, name) for name in info.videos},
            _first_text(row.get("tasks")),
        )
        for row, (file, start) in zip(rows, places, strict=True)
    ]


def _video_segment(info: Info, row: dict[str, Any], name: str) -> Segment:
    chunk, number = (_integer(info, row, f"videos/{name}/{k}_index") for k in ("chunk", "file"))
    start = row[f"videos/{name}/from_timestamp"]
    if not isinstance(start, int | float) or not 0 <= start < math.inf:
        raise EpisodeError(
            f"{info.root}: episode {row['episode_index']} has from_timestamp={start!r} of {name}."
        )
    file = info.file("video_path", video_key=name, chunk_index=chunk, file_index=number)
    return Segment(file, float(start))


def _kind_and_shape(file: Path, name: str, declared: Any) -> tuple[str, tuple[int, ...]]:
    """Return the data type and the shape of a feature; (H, W, 3) for images and videos."""
    problem = f"{file}: the feature {name}"
    if not isinstance(declared, dict):
        raise EpisodeError(f"{problem} is not an object with dtype and shape.")
    kind, shape = declared.get("dtype"), declared.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise EpisodeError(f"{problem} has shape={shape!r}; it must list positive numbers.")
    if kind in ("video", "image"):
        names = declared.get("names")
        channels_first = isinstance(names, list) and names[:1] in (["channel"], ["channels"])
        if (channels_first and len(shape) == 3) or (
            len(shape) == 3 and shape[0] == 3 and shape[2] != 3
        ):
            shape = [*shape[1:], shape[0]]
        has_colours = len(shape) == 3 and shape[2] == 3
        return (kind if has_colours else UNREADABLE), tuple(shape)
    try:
        dtype = np.dtype(kind) if isinstance(kind, str) else None
    except TypeError:  # a type of a later version
        dtype = None
    if dtype is None or dtype.kind not in "biuf":
        return UNREADABLE, tuple(shape)
    return dtype.name, tuple(shape)


def _entry_names(names: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of a feature's numbers, which data sets nest in different ways."""
    while isinstance(names, dict) or (
        isinstance(names, list) and len(names) == 1 and isinstance(names[0], list)
    ):
        values = list(names.values()) if isinstance(names, dict) else names
        names = values[0] if len(values) == 1 else None
    is_list = isinstance(names, list) and len(shape) == 1 and len(names) == shape[0]
    return tuple(map(str, names)) if is_list and names is not None else ()


def _first_text(tasks: Any) -> str:
    texts = tasks if isinstance(tasks, list) else [tasks]
    return next((text for text in texts if isinstance(text, str)), "")


def _integer(info: Info, row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise EpisodeError(f"{info.root}: an episode has {key}={value!r}.")
    return value


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EpisodeError(f"{file} cannot be read ({reason(error)}).") from error
    if not isinstance(content, dict):
        raise EpisodeError(f"{file} does not hold a JSON object.")
    return content


def _read_json_lines(file: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise EpisodeError(f"{file} cannot be read ({reason(error)}).") from error
    if not all(isinstance(line, dict) for line in lines):
        raise EpisodeError(f"{file} has a line that is not a JSON object.")
    return lines
