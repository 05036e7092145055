"""Data sets of LeRobot, on disk and in the cache of the Hugging Face Hub, and damaged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_files import (
    ACTION,
    CAMERA,
    FPS,
    JOINTS,
    SIZE,
    STATE,
    frames_of,
    rows_of,
    write_lerobot,
    write_video,
)

from ebt_policy.data.dataset import Role, open_dataset
from ebt_policy.data.episodes import EpisodeError
from ebt_policy.data.formats.lerobot_layout import inside
from ebt_policy.io.local_data import local_data

LENGTHS = (12, 7, 20)
VERSIONS = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


@VERSIONS
def test_lerobot_rows_and_frames(tmp_path, version):
    episodes = rows_of(LENGTHS)
    root = write_lerobot(tmp_path / "set", version, episodes, video=True)
    with open_dataset(root) as dataset:
        assert (dataset.format, dataset.fps, dataset.lengths.tolist()) == (
            "lerobot", FPS, list(LENGTHS),
        )  # fmt: skip
        assert {name: f.role for name, f in dataset.features.items()} == {
            ACTION: Role.ACTION, STATE: Role.STATE, CAMERA: Role.IMAGE,
        }  # fmt: skip
        assert dataset.features[ACTION].entries == tuple(JOINTS)
        for i in (2, 0, 1):
            rows = dataset.read(i, [STATE, ACTION])
            np.testing.assert_array_equal(rows[STATE], episodes[i][STATE])
            np.testing.assert_array_equal(rows[ACTION], episodes[i][ACTION])
            assert dataset.instruction(i) == "Move the arm."
            for chosen in ([0], [LENGTHS[i] - 1], [1, 2, 5], range(LENGTHS[i])):
                frames = dataset.frames(i, CAMERA, list(chosen)).astype(int)
                expected = frames_of(i, LENGTHS[i])[list(chosen)].astype(int)
                assert frames.shape == expected.shape
                # Compression changes values by a few units; another row differs by 6 or more.
                assert np.abs(frames - expected)[:, 16:].mean(axis=(1, 2, 3)).max() < 2
                assert np.abs(frames - expected)[:, :4, :4, 0].max() < 15


def test_both_versions_of_real_recordings_are_equal():
    old, new = local_data("g1_lerobot_v21"), local_data("g1_lerobot_v30")
    if old is None or new is None:
        pytest.skip("needs $EBT_POLICY_DATA")
    with open_dataset(old) as a, open_dataset(new) as b:
        assert a.lengths.tolist() == b.lengths.tolist() and len(a) == 10 and a.fps == b.fps == 30
        assert a.features == b.features and a.features["action"].shape == (26,)
        for i in (0, 9):
            names = ["action", "observation.state"]
            for name, rows in a.read(i, names).items():
                np.testing.assert_array_equal(rows, b.read(i, names)[name])
            camera = "observation.images.cam_high"
            rows = [0, 100, int(a.lengths[i]) - 1]
            np.testing.assert_array_equal(a.frames(i, camera, rows), b.frames(i, camera, rows))
            assert a.instruction(i) == b.instruction(i) != ""


def test_images_in_parquet_files(tmp_path):
    import io

    from PIL import Image

    root = write_lerobot(tmp_path / "set", "v2.1", rows_of([4]))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][CAMERA] = {"dtype": "image", "shape": [3, *SIZE], "names": ["channels"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    file = root / "data/chunk-000/episode_000000.parquet"
    encoded = []
    for frame in frames_of(0, 4):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "png")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pq.read_table(file).append_column(CAMERA, pa.array(encoded)), file)
    with open_dataset(root) as dataset:
        np.testing.assert_array_equal(dataset.frames(0, CAMERA, [1, 3]), frames_of(0, 4)[[1, 3]])


def edit_info(root: Path, **changes) -> None:
    file = root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 0}, "the rate '0'; it must be a positive, finite number"),
        ({"fps": 10**400}, "has the rate"),
        ({"fps": True}, "the rate 'True'"),
        ({"codebase_version": "v1.6"}, "codebase_version='v1.6'"),
        ({"features": {}}, "has no features"),
        ({"features": {"action": {"dtype": "float32", "shape": [-2]}}}, r"shape=\[-2\]"),
        ({"data_path": "../../etc/{episode_index}"}, "lies outside of it"),
        ({"data_path": "{episode_index.__class__}"}, "not a template"),
        ({"data_path": "{episode_index:9999999999d}"}, "not a template"),
        ({"data_path": 3}, "has no data_path"),
        ({"chunks_size": 0}, "chunks_size=0"),
    ],
)
def test_unusable_metadata_is_refused(tmp_path, changes, message):
    root = write_lerobot(tmp_path / "set", "v2.1", rows_of([5]))
    edit_info(root, **changes)
    with pytest.raises(EpisodeError, match=message):
        open_dataset(root)


def test_features_of_other_kinds_are_ignored(tmp_path):
    root = write_lerobot(tmp_path / "set", "v2.1", rows_of([5]))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] |= {
        "depth": {"dtype": "video", "shape": [8, 8, 1], "names": None},
        "subtask": {"dtype": "string", "shape": [1], "names": None},
        "future": {"dtype": "float99", "shape": [2], "names": None},
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    with open_dataset(root) as dataset:
        assert list(dataset.features) == [ACTION, STATE]
        assert dataset.read(0, [ACTION])[ACTION].shape == (5, 3)


@VERSIONS
def test_damaged_files_name_the_file_and_the_episode(tmp_path, version):
    root = write_lerobot(tmp_path / "set", version, rows_of(LENGTHS), video=True)
    rows = next((root / "data").rglob("*00000.parquet" if version == "v2.1" else "*.parquet"))
    video = next((root / "videos").rglob("*00000.mp4" if version == "v2.1" else "*.mp4"))

    def fails(message: str) -> None:
        with open_dataset(root) as dataset, pytest.raises(EpisodeError, match=message) as error:
            for i in range(len(dataset)):
                dataset.read(i, [STATE, ACTION])
                dataset.frames(i, CAMERA, range(LENGTHS[i]))
        assert str(rows.name) in str(error.value) or str(video.name) in str(error.value)

    content, film = rows.read_bytes(), video.read_bytes()
    rows.write_bytes(content[: len(content) // 2])
    fails("cannot be read")
    rows.unlink()
    fails("cannot be read")
    rows.write_bytes(content)
    pq.write_table(pq.read_table(rows).slice(0, 5), rows)
    fails("episode|length")
    pq.write_table(pq.read_table(rows).drop_columns([ACTION]), rows)
    fails("has no column action")
    rows.write_bytes(content)
    video.write_bytes(film[: len(film) // 2])
    fails("cannot be decoded|has no frame")
    video.unlink()
    fails("is missing: it has the frames")
    write_video(video, [LENGTHS[0] - 2])  # fewer frames than rows
    fails(r"has no frame at 1\.\d+ s")
    write_video(video, LENGTHS if version == "v3.0" else LENGTHS[:1], fps=7)  # another rate
    fails("its rate is not 10 frames per second")


def test_other_numbers_of_entries_in_a_row(tmp_path):
    root = write_lerobot(tmp_path / "set", "v2.1", rows_of([5]))
    file = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(file)
    ragged = pa.array([[1.0], [1.0, 2.0], [3.0], [4.0], [5.0]], pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.schema.get_field_index(ACTION), ACTION, ragged), file)
    with (
        open_dataset(root) as dataset,
        pytest.raises(EpisodeError, match="does not have the shape"),
    ):
        dataset.read(0, [ACTION])


def test_links_stay_inside_the_data_set_or_the_hub_cache(tmp_path):
    (tmp_path / "secret").write_text("x")
    root = tmp_path / "set"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(EpisodeError, match="outside of it"):
        inside(root, "link")
    snapshots = tmp_path / "home/snapshots/x"
    snapshots.mkdir(parents=True)
    (tmp_path / "home/secret").write_text("x")
    (snapshots / "link").symlink_to(tmp_path / "home/secret")  # not in the cache of the hub
    for name in ("link", "../../secret", "a\0b"):
        with pytest.raises(EpisodeError, match=r"outside of it|is no path"):
            inside(snapshots, name)
    snapshot = tmp_path / "datasets--a--b/snapshots/1234"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "datasets--a--b/blobs/5678"
    blob.parent.mkdir()
    blob.write_text("x")
    (snapshot / "file").symlink_to(os.path.relpath(blob, snapshot))
    assert inside(snapshot, "file").read_text() == "x"


def test_missing_list_of_episodes(tmp_path):
    for version, part in (("v2.1", "episodes.jsonl"), ("v3.0", "episodes/chunk-000")):
        root = write_lerobot(tmp_path / version, version, rows_of([5]))  # type: ignore[arg-type]
        os.rename(root / "meta" / part, root / "meta/moved")
        with pytest.raises(EpisodeError, match=r"cannot be read|no parquet files"):
            open_dataset(root)


# -- the Hugging Face Hub -------------------------------------------------------------------------


def test_data_set_in_the_cache_of_the_hub(tmp_path):
    """A subprocess, because huggingface_hub reads its environment when it is imported."""
    hub = tmp_path / "hf" / "hub" / "datasets--someone--arm"
    source = write_lerobot(tmp_path / "source", "v3.0", rows_of(LENGTHS), video=True)
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("abc123")
    for i, file in enumerate(p for p in source.rglob("*") if p.is_file()):
        blob, link = hub / "blobs" / str(i), hub / "snapshots/abc123" / file.relative_to(source)
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    script = f"""if True:
        from ebt_policy.data.dataset import open_dataset
        from ebt_policy.data.zarr_store import EpisodeError
        with open_dataset("hf://someone/arm") as dataset:
            print(dataset.lengths.tolist(), dataset.frames(0, {CAMERA!r}, [1]).shape)
        try:
            open_dataset("hf://someone/else@v3.0")
        except EpisodeError as error:
            print(error)
    """
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert printed.startswith("[12, 7, 20] (1, 32, 48, 3)")
    assert "hf://someone/else@v3.0 cannot be downloaded (" in printed


def test_names_of_the_hub_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EpisodeError, match="For the Hugging Face Hub, write hf://someone/arm"):
        open_dataset("someone/arm")
    with pytest.raises(EpisodeError, match="must be hf://USER/NAME"):
        open_dataset("hf://arm")
