"""Video: clips and windows, training models of it and what that leaves, evaluation."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import compose_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ebt_policy import eval as eval_entry
from ebt_policy import train as train_entry
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.push_t import load_push_t
from ebt_policy.envs.mp4_writer import video_writer
from ebt_policy.errors import ConfigError
from ebt_policy.io.local_data import local_data
from ebt_policy.train import train
from ebt_policy.video import datasets as footage
from ebt_policy.video import evaluate as video_evaluate
from ebt_policy.video.data import Clip, FrameWindows, VideoError, split
from ebt_policy.video.datasets import (
    VideoTaskConfig,
    load_g1,
    load_video_files,
    load_videos,
    read_video,
)
from ebt_policy.video.metrics import prediction_errors

# -- data ----------------------------------------------------------------------------------------


def clips(*lengths: int) -> list[Clip]:
    return [Clip(np.full((n, 4, 4, 3), i, np.uint8), f"clip {i}") for i, n in enumerate(lengths)]


@given(st.lists(st.integers(1, 12), min_size=10, max_size=25))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_each_clip_is_in_one_part(lengths):
    given_clips = clips(*lengths)
    parts = split(given_clips)
    names = [clip.name for part in parts.values() for clip in part]
    assert sorted(names) == sorted(clip.name for clip in given_clips)
    assert set(parts) == {"train", "validation", "test"} and all(parts.values())


def test_few_clips_are_cut_to_pieces():
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


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Twelve films of 16 frames: a bright square that goes right, at several heights."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(12):
        with video_writer(folder / f"{i:02}.mp4", fps=10) as add:
            for t in range(16):
                frame = np.full((32, 48, 3), 40, np.uint8)
                frame[i : i + 12, 2 * t : 2 * t + 12] = 220
                add(frame)
    return folder


def test_video_files_are_read_at_the_size_and_rate_asked_for(films):
    found = load_video_files([str(films)], 16, 24, 2)
    assert sum(map(len, found.splits.values())) == 12 and all(found.splits.values())
    frames = found.splits["train"][0].frames
    assert frames.shape == (8, 16, 24, 3) and found.rate_hz == 5
    bright = (frames[..., 0] > 130).any(1).argmax(1)
    assert (np.diff(bright) > 0).all()  # the square goes right


def test_what_is_no_video_is_named(tmp_path):
    with pytest.raises(VideoError, match="there is no video at"):
        load_video_files([str(tmp_path / "none.mp4")], 8, 8, 1)
    with pytest.raises(VideoError, match=r"there is no video \(.mp4"):
        load_video_files([str(tmp_path)], 8, 8, 1)
    (tmp_path / "bad.mp4").write_bytes(b"no film" * 50)
    with pytest.raises(VideoError, match=r"bad\.mp4 is no video .* task\.skip_unreadable=true"):
        load_video_files([str(tmp_path)], 8, 8, 1)


def test_damaged_videos_are_left_out_where_told(films, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no film" * 50)
    with pytest.raises(VideoError, match=r"no video can be used: .*bad\.mp4 is no video"):
        load_video_files([str(tmp_path)], 8, 8, 1, skip_unreadable=True)
    given = task(path=[str(films), str(tmp_path)], skip_unreadable=True)
    found = load_videos(given)
    assert sum(map(len, found.splits.values())) == 12
    assert "from 12 files, 1 left out:" in found.origin and "bad.mp4" in found.origin


def test_videos_taken_upright_are_turned_as_they_say(films, tmp_path):
    raw = bytearray((films / "00.mp4").read_bytes())
    matrix = raw.index(b"tkhd") + 44
    turned = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # clockwise, as by a telephone
    raw[matrix : matrix + 36] = struct.pack(">9i", *turned)
    (tmp_path / "a:[0]*.mp4").write_bytes(raw)
    plain, _ = read_video(films / "00.mp4", 32, 48, 1)
    upright, _ = read_video(tmp_path / "a:[0]*.mp4", 48, 32, 1)
    assert np.array_equal(upright, np.rot90(plain, -1, axes=(1, 2)))


def test_videos_of_several_rates_are_not_mixed(films, tmp_path):
    for fps in (10, 25):
        with video_writer(tmp_path / f"{fps}.mp4", fps=fps) as add:
            for _ in range(16):
                add(np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(VideoError, match=r"10\.mp4 has 10 frames .*25\.mp4 25: .* to one rate"):
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
        with pytest.raises(VideoError, match=rf"{name} is no video that can be read \(.*{why}"):
            load_video_files([str(tmp_path / name)], 8, 8, 1)


def test_clips_shorter_than_a_window_are_not_held_out(films, tmp_path):
    files = sorted(films.iterdir())
    for file in files:
        shutil.copy(file, tmp_path / file.name)
    held_out = Path(load_video_files([str(tmp_path)], 8, 8, 1).splits["validation"][0].name)
    with video_writer(held_out, fps=10) as add:
        for _ in range(3):
            add(np.zeros((32, 48, 3), np.uint8))
    found = load_videos(task(path=[str(tmp_path)], context=4))
    assert sum(map(len, found.splits.values())) == 11 and all(found.splits.values())
    assert f"{held_out} has 3 frames, a window needs 5" in found.origin


def task(**given: Any) -> VideoTaskConfig:
    defaults = {"name": "video", "videos": None, "path": None, "height": 24, "width": 32,
                "frame_stride": 1, "context": 4, "features": None}  # fmt: skip
    return VideoTaskConfig(**{**defaults, **given})


def test_a_real_robot_is_there_where_its_recording_is():
    if local_data("g1_pick_bottle", "lowdim.npz") is None:
        with pytest.raises(VideoError, match="looked for at"):
            load_g1(24, 32, 1)
        return
    found = load_g1(24, 32, 1)
    assert sum(len(c.frames) for part in found.splits.values() for c in part) == 6532
    assert sum(len(part) for part in found.splits.values()) == 93 and found.rate_hz == 6
    # Episodes are not cut wrongly: within one, frames change little.
    frames = found.splits["train"][0].frames.astype(float)
    assert np.abs(np.diff(frames, axis=0)).mean() < 15


def test_an_unknown_name_is_one_clear_error():
    with pytest.raises(ConfigError, match=r"task\.videos=cats is unknown; there are g1, push_t"):
        load_videos(task(videos="cats"))
    with pytest.raises(ConfigError, match=r"task\.frame_stride must be at least 1"):
        task(frame_stride=0)


def test_push_t_is_drawn_from_the_demonstrations_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path))

    def ten(demos: Any) -> tuple[Episodes, str]:
        assert demos == "expert"
        episodes, said = load_push_t(demos=demos)
        kept = [{k: rows[:6] for k, rows in episodes.episode(i).items()} for i in range(10)]
        arrays = {k: np.concatenate([one[k] for one in kept]) for k in kept[0]}
        return Episodes(arrays, np.arange(6, 61, 6), episodes.attrs), said

    monkeypatch.setattr(footage, "load_push_t", ten)
    found = load_videos(task(videos="push_t_expert", frame_stride=4))
    assert found.name == "push_t_expert" and found.rate_hz == 2.5
    shapes = [clip.frames.shape for part in found.splits.values() for clip in part]
    assert shapes == [(2, 24, 32, 3)] * 10


# -- training ------------------------------------------------------------------------------------

TINY = (
    "size.width=16", "size.heads=2", "size.layers=1", "device=cpu", "train.steps=6",
    "train.minutes=null", "train.batch_size=4", "train.warmup_steps=2", "train.compile=false",
    "train.checkpoint_every=3", "train.log_every=1", "task.height=16", "task.width=24",
    "task.context=4",
)  # fmt: skip


@pytest.fixture
def short(monkeypatch):
    """An autoencoder that is trained in no time."""
    from ebt_policy.video import task as video

    monkeypatch.setitem(video.AUTOENCODER_DEFAULTS, "steps", 4)
    monkeypatch.setitem(video.AUTOENCODER_DEFAULTS, "batch_size", 4)
    monkeypatch.setitem(video.AUTOENCODER_DEFAULTS, "warmup_steps", 2)
    monkeypatch.setitem(video.AUTOENCODER_MODEL, "channels", [8, 8])


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("objective=s2",), ("model=transformer_pp",), ()])
def test_training_leaves_a_report_pictures_and_a_film(
    overrides, films, tmp_path, monkeypatch, short, caplog
):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "runs" / "one"
    config = compose_config(*TINY, f"task.path={films}", f"run_dir={run}", *overrides, "task=video")
    caplog.set_level("INFO")
    train(config)
    assert "training an autoencoder in" in caplog.text
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("validation_loss" in row for row in rows)
    (entry,) = json.loads((run / "evaluation/summary.json").read_text())["entries"]
    assert entry["error"]["mean"] > 0 and entry["clips"] == 4 and len(entry["by_place"]) == 4
    assert ("energy" in entry["hard"]) == (entry["model"] == "ebt")
    assert (run / "evaluation/report.html").stat().st_size > 10_000
    assert (run / "evaluation/rollouts.mp4").read_bytes()[4:8] == b"ftyp"
    with Image.open(run / "evaluation/strips.png") as image:
        assert image.size[0] > 300
    # The autoencoder is there now.
    config["run_dir"] = str(run.with_name("two"))
    caplog.clear()
    train(config)
    assert "training an autoencoder in" not in caplog.text


def test_clips_shorter_than_the_context_are_told_before_anything_is_trained(
    films, tmp_path, call_entry
):
    code, error = call_entry(
        train_entry.main, "task=video", *TINY, "task.context=20", f"task.path={films}",
        f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 2 and re.search(r"00\.mp4 has 16 frames, a window needs 21 \(", error), error
    assert not list(tmp_path.glob("autoencoder*"))


@pytest.mark.slow
def test_the_command_line_trains_and_compares(films, tmp_path, monkeypatch, call_entry):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    frames_run = tmp_path / "autoencoder"
    given = [*TINY, f"task.path={films}", "evaluation.final=false"]
    code, error = call_entry(
        train_entry.main, "task=video", "model=autoencoder", "model.channels=[8,8]", *TINY,
        f"task.path={films}", f"run_dir={frames_run}",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads((frames_run / "evaluation/summary.json").read_text())["psnr"]["mean"] > 3
    runs = [tmp_path / "ebt", tmp_path / "refiner", tmp_path / "transformer_pp"]
    for run in runs:
        code, error = call_entry(
            train_entry.main, "task=video", f"model={run.name}", *given,
            f"task.features={frames_run}", f"run_dir={run}",
        )  # fmt: skip
        assert code == 0, error
    comparing = (
        *(f"checkpoint={run}" for run in runs), f"checkpoint={runs[0]}@steps=3",
        f"output={tmp_path / 'out'}", "device=cpu",
    )  # fmt: skip
    code, error = call_entry(eval_entry.main, *comparing)
    assert code == 0, error
    result = json.loads((tmp_path / "out/summary.json").read_text())
    assert len(result["entries"]) == 4 and len(result["paired"]) == 6
    # Interrupted while it writes the third line, it resumes from there.
    log = tmp_path / "out/foreseen.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:50])
    again = []
    monkeypatch.setattr(
        video_evaluate, "prediction_errors", lambda *a: again.append(a) or prediction_errors(*a)
    )
    code, error = call_entry(eval_entry.main, *comparing)
    assert code == 0, error
    assert json.loads((tmp_path / "out/summary.json").read_text()) == result
    assert log.read_text().splitlines(keepends=True) == lines and len(again) == len(lines) - 2
    for wrong, message in (
        ([f"checkpoint={runs[0]}", f"checkpoint={runs[0]}/"], "ebt is listed twice"),
        (
            [f"checkpoint={tmp_path}/*"],
            "must match runs that differ in their seed alone|holds model=",
        ),
        ([f"checkpoint={frames_run}"], "holds model=autoencoder, not VideoModel"),
        (
            [f"checkpoint={runs[0]}@num_candidates=2"],
            "all candidates of this model start from",
        ),
        ([f"checkpoint={runs[0]}", "images=leaves"], "images= is for an image model"),
    ):
        code, error = call_entry(eval_entry.main, *wrong, "device=cpu")
        assert code == 2 and re.search(message, error), error
    # Other videos: all of a folder, of which no clip is cut; what they are is said.
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(films / "00.mp4", other / "mine.mp4")
    code, error = call_entry(
        eval_entry.main, *comparing[:-2], f"video_dataset={other}", f"output={tmp_path / 'mine'}",
        "device=cpu",
    )  # fmt: skip
    assert code == 0, error
    entries = json.loads((tmp_path / "mine/summary.json").read_text())["entries"]
    assert all((one["videos"], one["clips"]) == ("other", 1) for one in entries)
    code, error = call_entry(eval_entry.main, *comparing[:1], "video_dataset=cats", "device=cpu")
    assert code == 2 and "video_dataset=cats is neither a path nor one of g1, push_t" in error
    # Frames that differ from the first one's are compared with no other, and not drawn.
    slow = tmp_path / "slow"
    code, error = call_entry(
        train_entry.main, "task=video", *given, f"task.features={frames_run}",
        "task.frame_stride=2", f"run_dir={slow}",
    )  # fmt: skip
    assert code == 0, error
    code, error = call_entry(
        eval_entry.main, f"checkpoint={runs[0]}", f"checkpoint={slow}",
        f"output={tmp_path / 'both'}", "device=cpu",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads((tmp_path / "both/summary.json").read_text())["paired"] == []
    # Features of another autoencoder are no longer those that were learned from.
    shutil.rmtree(frames_run)
    call_entry(
        train_entry.main, "task=video", "model=autoencoder", "model.channels=[8,8]", *TINY,
        "seed=1", "evaluation.final=false", f"task.path={films}", f"run_dir={frames_run}",
    )  # fmt: skip
    code, error = call_entry(eval_entry.main, f"checkpoint={runs[0]}", "device=cpu")
    assert code == 2 and "is not what made the features" in error


@pytest.mark.slow
def test_motion_that_never_changes_is_learned(films, tmp_path, monkeypatch):
    """After some seconds the next frame is foreseen better than by repeating the last one."""
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    frames_run = tmp_path / "autoencoder"
    common = [*TINY, f"task.path={films}"]
    train(
        compose_config(
            *common, "model=autoencoder", "model.channels=[8,16]", "train.steps=150",
            "train.lr=5e-3", f"run_dir={frames_run}", "task=video",
        )
    )  # fmt: skip
    run = tmp_path / "run"
    config = compose_config(
        *common, "train.steps=150", "train.batch_size=16", "train.lr=5e-3", "train.ema_power=0.6",
        f"task.features={frames_run}", f"run_dir={run}", "task=video",
    )  # fmt: skip
    train(config)
    (entry,) = json.loads((run / "evaluation/summary.json").read_text())["entries"]
    assert entry["error"]["mean"] < 0.7 * entry["repeating"]["mean"]
