"""Tiny LeRobot data sets of both versions, written without LeRobot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ebt_policy.envs.mp4_writer import video_writer

FPS = 10
STATE, ACTION, CAMERA = "observation.state", "action", "observation.images.top"
JOINTS = ["shoulder", "elbow", "gripper"]
SIZE = (32, 48)
Version = Literal["v2.1", "v3.0"]


def rows_of(lengths: Sequence[int], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Return smooth joint states (L, 3), and actions (L, 3) that are the next states."""
    rng = np.random.default_rng(seed)
    episodes = []
    for length in lengths:
        turns = np.arange(length + 1)[:, None] / 30 + rng.uniform(size=3)
        path = np.sin(2 * np.pi * turns).astype(np.float32)
        episodes.append({STATE: path[:-1].copy(), ACTION: path[1:].copy()})
    return episodes


def frames_of(episode: int, length: int) -> np.ndarray:
    """Return frames (L, H, W, 3) whose brightness tells the row and whose red tells the episode."""
    frames = np.zeros((length, *SIZE, 3), np.uint8)
    frames += (60 + 6 * np.arange(length) % 180).astype(np.uint8)[:, None, None, None]
    frames[:, :8, :8] = (20 * (1 + episode), 0, 0)
    return frames


def write_lerobot(
    root: Path,
    version: Version,
    episodes: Sequence[dict[str, np.ndarray]],
    *,
    video: bool = False,
    info: dict[str, Any] | None = None,
) -> Path:
    """Write a data set; ``info`` overwrites entries of info.json."""
    lengths = [len(episode[ACTION]) for episode in episodes]
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [3], "names": JOINTS} for name in (STATE, ACTION)
    }
    features |= {
        name: {"dtype": kind, "shape": [1], "names": None}
        for name, kind in (("timestamp", "float32"), ("episode_index", "int64"))
    }
    if video:
        features[CAMERA] = {
            "dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channel"],
        }  # fmt: skip
    is_v3 = version == "v3.0"
    part = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    content = {
        "codebase_version": version, "fps": FPS, "features": features, "chunks_size": 1000,
        "total_episodes": len(episodes), "future_key": {"ignored": True},
        "data_path": f"data/{part}.parquet" if is_v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": f"videos/{{video_key}}/{part}.mp4" if is_v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        **(info or {}),
    }  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(content))
    tables = [_table(i, episode) for i, episode in enumerate(episodes)]
    if is_v3:
        _write(root / "data/chunk-000/file-000.parquet", pa.concat_tables(tables))
        _write_v3_index(root, lengths, video)
    else:
        for i, table in enumerate(tables):
            _write(root / f"data/chunk-000/episode_{i:06d}.parquet", table)
        lines = [
            json.dumps({"episode_index": i, "length": n, "tasks": ["Move the arm."]}) + "\n"
            for i, n in enumerate(lengths)
        ]
        (root / "meta/episodes.jsonl").write_text("".join(lines))
    if video and is_v3:
        write_video(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", lengths)
    elif video:
        for i, length in enumerate(lengths):
            path = root / f"videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4"
            write_video(path, [length], first=i)
    return root


def write_video(path: Path, lengths: Sequence[int], first: int = 0, fps: float = FPS) -> None:
    with video_writer(path, fps) as add:
        for i, length in enumerate(lengths):
            for frame in frames_of(first + i, length):
                add(frame)


def _table(index: int, episode: dict[str, np.ndarray]) -> pa.Table:
    length = len(episode[ACTION])
    columns: dict[str, Any] = {
        name: pa.array(list(values), pa.list_(pa.float32())) if values.ndim == 2 else values
        for name, values in episode.items()
    }
    return pa.table(
        {
            **columns,
            "timestamp": np.arange(length, dtype=np.float32) / FPS,
            "episode_index": np.full(length, index),
        }
    )


def _write_v3_index(root: Path, lengths: Sequence[int], video: bool) -> None:
    ends = np.cumsum(lengths)
    rows = []
    for i, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        start = int(end - length)
        row: dict[str, Any] = {
            "episode_index": i, "length": int(length), "tasks": ["Move the arm."],
            "data/chunk_index": 0, "data/file_index": 0,
            "dataset_from_index": start, "dataset_to_index": int(end),
        }  # fmt: skip
        if video:
            row |= {
                f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": 0,
                f"videos/{CAMERA}/from_timestamp": start / FPS,
                f"videos/{CAMERA}/to_timestamp": int(end) / FPS,
            }  # fmt: skip
        rows.append(row)
    rows.reverse()  # the order of the rows has no meaning
    _write(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
