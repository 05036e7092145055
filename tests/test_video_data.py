"""Video data: clips, windows, files and data sets."""

from __future__ import annotations

import io
import shutil
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebt_policy.data.episodes import Episodes
from ebt_policy.data.push_t import load_push_t
from ebt_policy.envs.mp4_writer import video_writer
from ebt_policy.errors import ConfigError
from ebt_policy.io.local_data import local_data
from ebt_policy.video import datasets as video_datasets
from ebt_policy.video.data import Clip, FrameWindows, VideoError, split
from ebt_policy.video.datasets import (
    VideoTaskConfig,
    load_g1,
    load_video_files,
    load_videos,
    read_video,
)


def clips(*lengths: int) -> list[Clip]:
    return [Clip(np.full((n, 4, 4, 3), i, np.uint8), f"clip {i}") for i, n in enumerate(lengths)]


@given(st.lists(st.integers(1, 12), min_size=10, max_size=25))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_each_clip_is_in_one_split(lengths):
    given_clips = clips(*lengths)
    parts = split(given_clips)
    names = [clip.name for part in parts.values() for clip in part]
    assert sorted(names) == sorted(clip.name for clip in given_clips)
    assert set(parts) == {"train", "validation", "test"} and all(parts.values())


def test_few_clips_are_split_into_parts():
    parts = split(clips(20, 31))
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 16, "validation": 2, "test": 2,
    }  # fmt: skip
    assert sum(len(clip.frames) for part in parts.values() for clip in part) == 51
    with pytest.raises(VideoError, match="too few frames"):
        split(clips(5))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_windows_never_cross_clips(lengths, context, stride):
    features = [
        torch.stack([torch.full((n,), i), torch.arange(n)], 1) for i, n in enumerate(lengths)
    ]
    if max(lengths) <= context:
        with pytest.raises(VideoError, match=f"no clip has {context + 1} frames"):
            FrameWindows(features, context, stride=stride)
        return
    windows = FrameWindows(features, context, stride=stride)
    assert len(windows) == sum(len(range(0, n - context, stride)) for n in lengths)
    rows = windows.gather(torch.arange(len(windows)))["frames"]
    assert rows.shape == (len(windows), context + 1, 2)
    assert (rows[:, :, 0] == windows.clip[:, None]).all() and (rows[:, :, 1].diff(dim=1) == 1).all()


def test_video_files_are_read_at_the_requested_size_and_rate(video_folder):
    dataset = load_video_files([str(video_folder)], 16, 24, 2)
    assert sum(map(len, dataset.splits.values())) == 12 and all(dataset.splits.values())
    frames = dataset.splits["train"][0].frames
    assert frames.shape == (8, 16, 24, 3) and dataset.rate_hz == 5
    bright = (frames[..., 0] > 130).any(1).argmax(1)
    assert (np.diff(bright) > 0).all()  # the square moves right


def test_non_video_files_are_named(tmp_path):
    with pytest.raises(VideoError, match="there is no video at"):
        load_video_files([str(tmp_path / "none.mp4")], 8, 8, 1)
    with pytest.raises(VideoError, match=r"there is no video \(.mp4"):
        load_video_files([str(tmp_path)], 8, 8, 1)
    (tmp_path / "bad.mp4").write_bytes(b"no film" * 50)
    with pytest.raises(VideoError, match=r"bad\.mp4 cannot be read .* task\.skip_unreadable=true"):
        load_video_files([str(tmp_path)], 8, 8, 1)


def test_damaged_videos_are_skipped_with_skip_unreadable(video_folder, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no film" * 50)
    with pytest.raises(VideoError, match=r"no video can be used: .*bad\.mp4 cannot be read"):
        load_video_files([str(tmp_path)], 8, 8, 1, skip_unreadable=True)
    config = task(path=[str(video_folder), str(tmp_path)], skip_unreadable=True)
    dataset = load_videos(config)
    assert sum(map(len, dataset.splits.values())) == 12
    assert "from 12 files, 1 skipped:" in dataset.origin and "bad.mp4" in dataset.origin


def test_rotation_metadata_is_applied(video_folder, tmp_path):
    raw = bytearray((video_folder / "00.mp4").read_bytes())
    matrix = raw.index(b"tkhd") + 44
    turned = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # clockwise, as phones store it
    raw[matrix : matrix + 36] = struct.pack(">9i", *turned)
    (tmp_path / "a:[0]*.mp4").write_bytes(raw)
    plain, _ = read_video(video_folder / "00.mp4", 32, 48, 1)
    upright, _ = read_video(tmp_path / "a:[0]*.mp4", 48, 32, 1)
    assert np.array_equal(upright, np.rot90(plain, -1, axes=(1, 2)))


def test_videos_of_several_rates_are_not_mixed(video_folder, tmp_path):
    for fps in (10, 25):
        with video_writer(tmp_path / f"{fps}.mp4", fps=fps) as add:
            for _ in range(16):
                add(np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(VideoError, match=r"10\.mp4 has 10 frames .*25\.mp4 has 25; .* to one rate"):
        load_video_files([str(tmp_path)], 8, 8, 2)


def test_videos_that_end_early_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    with video_writer(tmp_path / "whole.mp4", fps=10) as add:
        for frame in noise:
            add(frame)
    mp4 = (tmp_path / "whole.mp4").read_bytes()
    with av.open(io.BytesIO(mp4), "r") as source, av.open(str(tmp_path / "whole.mkv"), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    mkv = (tmp_path / "whole.mkv").read_bytes()
    assert len(read_video(tmp_path / "whole.mkv", 8, 8, 1)[0]) == 30
    for name, cut, why in (
        ("short.mp4", mp4[:-200], ""),
        ("short.mkv", mkv[: len(mkv) // 2], r"it ends after \d+ of 30 frames"),
    ):
        (tmp_path / name).write_bytes(cut)
        with pytest.raises(VideoError, match=rf"{name} cannot be read as a video \(.*{why}"):
            load_video_files([str(tmp_path / name)], 8, 8, 1)


def test_clips_shorter_than_a_window_are_not_held_out(video_folder, tmp_path):
    files = sorted(video_folder.iterdir())
    for file in files:
        shutil.copy(file, tmp_path / file.name)
    held_out = Path(load_video_files([str(tmp_path)], 8, 8, 1).splits["validation"][0].name)
    with video_writer(held_out, fps=10) as add:
        for _ in range(3):
            add(np.zeros((32, 48, 3), np.uint8))
    dataset = load_videos(task(path=[str(tmp_path)], context=4))
    assert sum(map(len, dataset.splits.values())) == 11 and all(dataset.splits.values())
    assert f"{held_out} has 3 frames, a window needs 5" in dataset.origin


def task(**changes: Any) -> VideoTaskConfig:
    defaults = {"name": "video", "videos": None, "path": None, "height": 24, "width": 32,
                "frame_stride": 1, "context": 4, "features": None}  # fmt: skip
    return VideoTaskConfig(**{**defaults, **changes})


def test_g1_recording_is_loaded_if_available():
    if local_data("g1_pick_bottle", "lowdim.npz") is None:
        with pytest.raises(VideoError, match="was not found at"):
            load_g1(24, 32, 1)
        return
    dataset = load_g1(24, 32, 1)
    assert sum(len(c.frames) for part in dataset.splits.values() for c in part) == 6532
    assert sum(len(part) for part in dataset.splits.values()) == 93 and dataset.rate_hz == 6
    # Frames change little within a clip, so episodes are split at the right places.
    frames = dataset.splits["train"][0].frames.astype(float)
    assert np.abs(np.diff(frames, axis=0)).mean() < 15


def test_unknown_video_name_is_refused():
    with pytest.raises(ConfigError, match=r"task\.videos=cats is unknown; there are g1, push_t"):
        load_videos(task(videos="cats"))
    with pytest.raises(ConfigError, match=r"task\.frame_stride must be at least 1"):
        task(frame_stride=0)


def test_push_t_videos_use_the_requested_demonstrations(monkeypatch, tmp_path):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path))

    def load_ten_short_episodes(demos: Any) -> tuple[Episodes, str]:
        assert demos == "expert"
        episodes, note = load_push_t(demos=demos)
        shortened = [{k: rows[:6] for k, rows in episodes.episode(i).items()} for i in range(10)]
        arrays = {k: np.concatenate([episode[k] for episode in shortened]) for k in shortened[0]}
        return Episodes(arrays, np.arange(6, 61, 6), episodes.attrs), note

    monkeypatch.setattr(video_datasets, "load_push_t", load_ten_short_episodes)
    dataset = load_videos(task(videos="push_t_expert", frame_stride=4))
    assert dataset.name == "push_t_expert" and dataset.rate_hz == 2.5
    shapes = [clip.frames.shape for part in dataset.splits.values() for clip in part]
    assert shapes == [(2, 24, 32, 3)] * 10
