"""Conversion of data sets: round trips, names, failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_files import CAMERA, FPS, STATE, frames_of, rows_of, write_lerobot, write_video

from ebt_policy.convert import main
from ebt_policy.data.convert import convert
from ebt_policy.data.dataset import Dataset, Role, open_dataset
from ebt_policy.data.episode_store import read_episodes, write_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes
from ebt_policy.data.formats.lerobot_stats import combine_statistics, row_statistics
from ebt_policy.errors import ConfigError

LENGTHS = (12, 7, 20)
ENTRIES = ["shoulder", "elbow", "gripper"]


@pytest.fixture
def store(tmp_path) -> Path:
    """Write an episode store with numbers of many kinds, frames and instructions."""
    rng = np.random.default_rng(0)
    rows, total = rows_of(LENGTHS), sum(LENGTHS)
    arrays = {
        "state": np.concatenate([row[STATE] for row in rows]).astype(np.float64),
        "obs": rng.normal(size=(total, 5)).astype(np.float32),
        "action": np.concatenate([row["action"] for row in rows]),
        "keypoint": rng.normal(size=(total, 9, 2)).astype(np.float32),
        "contacts": rng.integers(0, 9, (total, 1)),
        "flag": rng.uniform(size=(total, 3)) > 0.5,
        "camera": np.concatenate([frames_of(i, n) for i, n in enumerate(LENGTHS)]),
    }
    attrs = {
        "rate_hz": 10.0, "names": {"action": ENTRIES, "obs": list("abcde")},
        "units": {"state": "rad"},
        "instructions": ["Push.", "Pull.", "Push."],
    }  # fmt: skip
    path = tmp_path / "store.zarr"
    write_episodes(path, Episodes(arrays, np.cumsum(LENGTHS), attrs))
    return path


def assert_equal(a: Dataset, b: Dataset, *, psnr: float | None = None) -> None:
    """Assert that two data sets have the same content, except for names and compressed frames."""
    assert a.lengths.tolist() == b.lengths.tolist() and a.fps == b.fps
    for (name, feature), (other, twin) in zip(sorted(a.features.items()),
                                              sorted(b.features.items()), strict=True):  # fmt: skip
        assert (feature.role, feature.shape, feature.dtype) == (twin.role, twin.shape, twin.dtype)
        assert feature.entries == twin.entries
        for i in range(len(a)):
            assert a.instruction(i) == b.instruction(i)
            if feature.role is Role.IMAGE:
                rows = range(int(a.lengths[i]))
                x, y = (d.frames(i, n, list(rows)) for d, n in ((a, name), (b, other)))
                error = float(((x.astype(float) - y) ** 2).mean())
                assert error == 0 if psnr is None else 10 * np.log10(255**2 / error) > psnr
            else:
                np.testing.assert_array_equal(a.read(i, [name])[name], b.read(i, [other])[other])


@pytest.mark.robomimic
def test_a_round_trip_loses_only_what_video_coding_loses(store, tmp_path):
    pytest.importorskip("h5py")
    lerobot = convert(store, tmp_path / "lerobot")
    robomimic = convert(tmp_path / "lerobot", tmp_path / "robomimic.hdf5")
    back = convert(tmp_path / "robomimic.hdf5", tmp_path / "back.zarr.zip")
    with open_dataset(store) as original, lerobot, robomimic, back:
        assert (lerobot.format, robomimic.format, back.format) == ("lerobot", "robomimic", "zarr")
        assert "observation.state" in lerobot.features and "keypoint" in lerobot.features
        assert "obs/state" in robomimic.features and "actions" in robomimic.features
        assert set(back.features) == set(original.features)
        assert_equal(original, back, psnr=35)


def test_folders_and_zips_have_the_same_content(store, tmp_path):
    first = convert(store, tmp_path / "a.zarr")
    second = convert(tmp_path / "a.zarr", tmp_path / "b.zarr.zip")
    with open_dataset(store) as original, first, second:
        assert_equal(original, first)
        assert_equal(original, second)


def test_files_of_lerobot(store, tmp_path):
    convert(store, tmp_path / "out").close()
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["total_frames"] == sum(LENGTHS)
    assert info["features"]["action"]["names"] == ENTRIES
    assert info["features"]["observation.images.camera"]["shape"] == [32, 48, 3]
    tasks = pq.read_table(tmp_path / "out/meta/tasks.parquet").to_pylist()
    assert tasks == [{"task_index": 0, "task": "Push."}, {"task_index": 1, "task": "Pull."}]
    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [e["dataset_from_index"] for e in episodes] == [0, 12, 19]
    camera = "videos/observation.images.camera"
    assert [e[f"{camera}/from_timestamp"] for e in episodes] == [0.0, 1.2, 1.9]
    rows = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert rows["index"].to_pylist() == list(range(sum(LENGTHS)))
    assert rows["task_index"].to_pylist() == [0] * 12 + [1] * 7 + [0] * 20
    assert pq.ParquetFile(tmp_path / "out/data/chunk-000/file-000.parquet").num_row_groups == 3
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    with open_dataset(store) as dataset:
        actions = np.concatenate([dataset.read(i, ["action"])["action"] for i in range(3)])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), atol=1e-6)
    image = stats["observation.images.camera"]
    assert np.array(image["mean"]).shape == (3, 1, 1) and 0 < image["mean"][1][0][0] < 1


def test_large_data_is_split_into_files(store, tmp_path, monkeypatch):
    module = "ebt_policy.data.formats.lerobot_writer"
    monkeypatch.setattr(f"{module}.DATA_MB", 0)
    monkeypatch.setattr(f"{module}.VIDEO_MB", 0)
    monkeypatch.setattr(f"{module}.CHUNK_SIZE", 2)
    with open_dataset(store) as original, convert(store, tmp_path / "out") as new:
        files = sorted(p.relative_to(tmp_path / "out").as_posix()
                       for p in (tmp_path / "out/data").rglob("*.parquet"))  # fmt: skip
        assert files == [
            "data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet",
            "data/chunk-001/file-000.parquet",
        ]  # fmt: skip
        assert len(list((tmp_path / "out/videos").rglob("*.mp4"))) == 3
        for i in range(3):
            name = "observation.state"
            np.testing.assert_array_equal(
                new.read(i, [name])[name], original.read(i, ["state"])["state"]
            )
            frames = new.frames(i, "observation.images.camera", [0, 5])
            assert np.abs(frames.astype(int) - frames_of(i, 6)[[0, 5]]).mean() < 5


def test_episode_stores_are_equal_however_often_they_are_written(store, tmp_path, monkeypatch):
    convert(store, tmp_path / "once.zarr").close()
    monkeypatch.setattr("ebt_policy.data.formats.zarr_writer.WRITE_BYTES", 0)
    convert(store, tmp_path / "often.zarr").close()
    once, often = (read_episodes(tmp_path / f"{name}.zarr") for name in ("once", "often"))
    assert once.ends.tolist() == often.ends.tolist() and set(once.arrays) == set(often.arrays)
    for name, values in once.arrays.items():
        np.testing.assert_array_equal(values, often.arrays[name])


def test_statistics_of_parts_combine():
    rows = np.random.default_rng(0).normal(size=(30, 2))
    parts = [{"x": row_statistics(rows[:10])}, {"x": row_statistics(rows[10:])}]
    combined, whole = combine_statistics(parts)["x"], row_statistics(rows)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(combined[name], whole[name])


# -- failures -------------------------------------------------------------------------------------


def test_nothing_is_left_after_a_failure(tmp_path):
    rows = rows_of(LENGTHS)
    source = write_lerobot(tmp_path / "set", "v3.0", rows, video=True)
    write_video(source / f"videos/{CAMERA}/chunk-000/file-000.mp4", LENGTHS[:2])  # too short
    (tmp_path / "out").mkdir()
    for name in ("new", "new.zarr", "new.zarr.zip", "new.hdf5"):
        if name.endswith("hdf5"):
            pytest.importorskip("h5py")
        with pytest.raises(EpisodeError, match="has no frame at"):
            convert(source, tmp_path / "out" / name)
        assert list((tmp_path / "out").iterdir()) == []


def test_values_that_are_not_finite_are_named(tmp_path):
    rows = rows_of(LENGTHS)
    rows[1][STATE][3] = np.inf
    source = write_lerobot(tmp_path / "set", "v2.1", rows)
    with pytest.raises(EpisodeError, match=r"episode 1 has NaN or infinity in observation.state"):
        convert(source, tmp_path / "new.zarr")
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("name", ["new", "new.zarr", "new.zarr.zip", "new.hdf5"])
def test_a_defect_of_the_first_episode_is_one_error(tmp_path, name):
    if name.endswith("hdf5"):
        pytest.importorskip("h5py")
    rows = rows_of(LENGTHS)
    rows[0]["action"][0] = np.nan
    source = write_lerobot(tmp_path / "set", "v2.1", rows, video=True)
    with pytest.raises(EpisodeError, match="episode 0 has NaN or infinity in action"):
        convert(source, tmp_path / "out" / name)
    assert not (tmp_path / "out" / name).exists()


def test_arguments_that_cannot_be_used(store, tmp_path):
    (tmp_path / "exists").mkdir()
    for destination, options, message in (
        ("exists", {}, "exists exists; give a new"),
        ("new", {"to": "csv"}, "to=csv is unknown; use lerobot, robomimic, zarr"),
        ("new.zip", {"to": "lerobot"}, "only an episode store can be a zip"),
        ("new", {"fps": 12.5}, "a whole number of rows per second, got 12.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(store, tmp_path / destination, **options)  # type: ignore[arg-type]
    write_episodes(tmp_path / "slow", Episodes({"action": np.zeros((3, 2))}, np.array([3])))
    with pytest.raises(ConfigError, match="needs a rate"):
        convert(tmp_path / "slow", tmp_path / "new")
    with convert(tmp_path / "slow", tmp_path / "new", fps=FPS) as dataset:
        assert dataset.fps == FPS


def test_names_that_would_collide(tmp_path):
    rows = np.zeros((3, 2))
    arrays = {"action": rows, "state": rows, "observation.state": rows}
    write_episodes(tmp_path / "store", Episodes(arrays, np.array([3]), {"rate_hz": 10}))
    with pytest.raises(EpisodeError, match=r"would both be named observation\.state"):
        convert(tmp_path / "store", tmp_path / "new")


def test_command(store, tmp_path, call_entry):
    code, error = call_entry(main, str(store), str(tmp_path / "out"))
    assert not code and error == ""
    code, error = call_entry(main, str(store))
    assert code == 2 and "write ebt-convert SOURCE DESTINATION" in error
    code, error = call_entry(main, str(tmp_path / "none"), str(tmp_path / "new"))
    assert code == 2 and "does not exist" in error
