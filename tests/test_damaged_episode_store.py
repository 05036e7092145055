"""Episode stores that are damaged, incomplete or written by other tools."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from episode_samples import FORMATS, chunk_of, make_episodes

from ebt_policy.data.episode_store import read_episodes, write_episodes
from ebt_policy.data.episodes import EpisodeError


def rezip(folder: Path) -> Path:
    """Write the files of a folder to a zip archive and return its path."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def assert_refused(folder: Path, message: str) -> None:
    """Assert that reading the folder or its zip fails with an error that names the path."""
    for path in (folder, rezip(folder)):
        with pytest.raises(EpisodeError, match=message) as caught:
            read_episodes(path)
        assert str(path) in str(caught.value)


@FORMATS
@pytest.mark.parametrize("key", ["data/action", "data/zero", "meta/episode_ends"])
@pytest.mark.parametrize("cut", ["missing", "empty", "half", "flipped"])
def test_damaged_chunk_is_an_error(tmp_path, zarr_format, key, cut):
    write_episodes(tmp_path / "s", make_episodes((40, 60)), zarr_format)
    chunk = chunk_of(tmp_path / "s", key)
    content = bytearray(chunk.read_bytes())
    if cut == "missing":
        chunk.unlink()
    elif cut == "flipped":
        content[len(content) // 2] ^= 0x10
        chunk.write_bytes(content)
    else:
        chunk.write_bytes(content[: len(content) // 2 if cut == "half" else 0])
    assert_refused(tmp_path / "s", f"{key} is damaged or incomplete")


@FORMATS
@pytest.mark.parametrize("key", ["data/action", "meta/episode_ends"])
def test_damaged_or_missing_metadata_is_an_error(tmp_path, zarr_format, key):
    write_episodes(tmp_path / "s", make_episodes(), zarr_format)
    metadata = tmp_path / "s" / key / (".zarray" if zarr_format == 2 else "zarr.json")
    metadata.write_text(metadata.read_text()[:50])
    assert_refused(tmp_path / "s", f"{key} is damaged")
    shutil.rmtree(tmp_path / "s" / "meta" / "episode_ends")
    assert_refused(tmp_path / "s", "meta/episode_ends is missing")


@FORMATS
def test_missing_keys_and_missing_data_are_errors(tmp_path, zarr_format):
    write_episodes(tmp_path / "s", make_episodes(), zarr_format)
    for path in (tmp_path / "s", rezip(tmp_path / "s")):
        with pytest.raises(EpisodeError, match='no key "state"; the keys are action, image, zero'):
            read_episodes(path, keys=["action", "state"])
    shutil.rmtree(tmp_path / "s" / "data")
    with pytest.raises(EpisodeError, match='no key "state"; the keys are none'):
        read_episodes(tmp_path / "s", keys=["state"])
    assert_refused(tmp_path / "s", "no arrays")


def test_paths_that_are_not_a_store_are_refused(tmp_path):
    with pytest.raises(EpisodeError, match="absent does not exist"):
        read_episodes(tmp_path / "absent")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "readme").write_text("hello")
    assert_refused(tmp_path / "s", "is not a zarr store")
    (tmp_path / "text.zip").write_text("this is no zip")
    with pytest.raises(EpisodeError, match="is not a zarr store"):
        read_episodes(tmp_path / "text.zip")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_truncated_zip_is_an_error(tmp_path, part):
    path = tmp_path / "s.zip"
    write_episodes(path, make_episodes((40, 60)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(EpisodeError, match=r"s\.zip is not a zarr store or is truncated"):
        read_episodes(path)


def write_unchecked(
    path: Path, arrays: dict[str, np.ndarray], ends: np.ndarray, zarr_format
) -> None:
    """Write a store without the checks of `write_episodes`."""
    root = zarr.create_group(path, zarr_format=zarr_format)
    for key, array in arrays.items():
        root.create_array(f"data/{key}", data=array)
    root.create_array("meta/episode_ends", data=ends)


@FORMATS
@pytest.mark.parametrize(
    ("values", "ends", "message"),
    [
        (np.ones((5, 2)), np.array([2, 6]), "data/x has shape .5, 2., but .* end at row 6"),
        (np.ones((5, 2)), np.array([3, 2, 5]), "strictly increasing"),
        (np.ones((5, 2)), np.array([-2, 5]), "strictly increasing"),
        (np.ones((5, 2)), np.array([2.0, 5.0]), "must be integers"),
        (np.ones((5, 2)), np.array([[2, 5]]), "episode_ends"),
        (np.ones((5, 2)), np.zeros(0, np.int64), "no episodes"),
        (np.array([[1.0], [np.nan]]), np.array([2]), '"x" has NaN or infinity .* in row 1'),
        (np.array([[np.inf], [1.0]]), np.array([2]), '"x" has NaN or infinity .* in row 0'),
        (np.ones((2, 1), complex), np.array([2]), '"x" has type complex128'),
    ],
)
def test_invalid_content_from_other_tools_is_an_error(tmp_path, zarr_format, values, ends, message):
    write_unchecked(tmp_path / "s", {"x": values}, ends, zarr_format)
    assert_refused(tmp_path / "s", message)


@FORMATS
def test_missing_chunks_are_read_as_fill_values(tmp_path, zarr_format):
    """zarr's specification requires this: zarr omits chunks that hold only fill values."""
    action = np.random.default_rng(0).normal(size=(150, 4))
    action[50:100] = 0
    root = zarr.create_group(tmp_path / "s", zarr_format=zarr_format)
    arrays = {"action": (action, 0), "never": (np.zeros((150, 1)), 0), "one": (action * 0 + 1, 1)}
    for key, (values, fill) in arrays.items():
        array = root.create_array(
            f"data/{key}", shape=values.shape, dtype="f4", chunks=(50, 1), fill_value=fill
        )
        array[...] = values
    root.create_array("meta/episode_ends", data=np.array([60, 150]))
    for path in (tmp_path / "s", rezip(tmp_path / "s")):
        with pytest.warns(UserWarning, match=r"4 of 12 chunks of data/action .* read as 0\.0"):
            assert np.array_equal(
                read_episodes(path, ["action"]).arrays["action"], action.astype("f4")
            )
        with pytest.warns(UserWarning, match=r"12 of 12 chunks of data/one .* read as 1\.0"):
            assert (read_episodes(path, ["one"]).arrays["one"] == 1).all()
        with pytest.warns(UserWarning, match="3 of 3 chunks of data/never"):
            assert not read_episodes(path, ["never"]).arrays["never"].any()


@FORMATS
def test_impossibly_large_shapes_are_a_one_line_error(tmp_path, zarr_format):
    rows = 10**15
    root = zarr.create_group(tmp_path / "s", zarr_format=zarr_format)
    for key, chunk in {"many": 1, "huge": rows}.items():
        root.create_array(f"data/{key}", shape=(rows,), dtype="f8", chunks=(chunk,))
    root.create_array("meta/episode_ends", data=np.array([rows]))
    with pytest.raises(EpisodeError, match="nearly all of 1,000,000,000,000,000 chunks"):
        read_episodes(tmp_path / "s", ["many"])
    with (
        pytest.warns(UserWarning, match="1 of 1 chunks"),
        pytest.raises(EpisodeError, match=r"data/huge is damaged .*Unable to allocate"),
    ):
        read_episodes(tmp_path / "s", ["huge"])


@FORMATS
def test_unreadable_key_is_an_error_only_when_read(tmp_path, zarr_format):
    write_episodes(tmp_path / "s", make_episodes(), zarr_format)
    metadata = tmp_path / "s" / "data" / "image" / (".zarray" if zarr_format == 2 else "zarr.json")
    metadata.write_text(metadata.read_text().replace('"zstd"', '"unheard_of"'))
    assert list(read_episodes(tmp_path / "s", keys=["action"]).arrays) == ["action"]
    assert_refused(tmp_path / "s", "data/image is damaged or incomplete")
