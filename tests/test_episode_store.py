"""Episode stores: round trips, writing, appending, kills, paths and links."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from episode_samples import (
    ATTRS,
    FORMATS,
    NAMES,
    assert_same,
    chunk_of,
    concatenated,
    make_episodes,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from ebt_policy.data import episode_store as module
from ebt_policy.data.episode_store import append_episodes, read_episodes, write_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes

# --- round trips -------------------------------------------------------------------------------


@FORMATS
@NAMES
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    shape=st.lists(st.integers(1, 4), max_size=2),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int64", "bool"]),
)
def test_written_episodes_are_read_back(tmp_path: Path, zarr_format, name, lengths, shape, dtype):
    n = sum(lengths)
    values = np.random.default_rng(n).normal(size=(n, *shape), scale=50).astype(dtype)
    eps = Episodes({"x": values, "zero": np.zeros((n, 1), dtype)}, np.cumsum(lengths), ATTRS)
    path = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_episodes(path, eps, zarr_format)  # later examples replace the store
        assert path.is_file() == name.endswith(".zip")
        assert_same(read_episodes(path), eps)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@FORMATS
@NAMES
def test_many_chunks_and_selected_keys_are_read(tmp_path, zarr_format, name, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 64)
    eps = make_episodes((4, 9, 11))
    write_episodes(tmp_path / name, eps, zarr_format)
    assert_same(read_episodes(tmp_path / name), eps)
    assert list(read_episodes(tmp_path / name, keys=["image"]).arrays) == ["image"]


@FORMATS
@pytest.mark.parametrize("prefix", ["replay.zarr/", "pusht/pusht_cchi_v7_replay.zarr/"])
def test_store_in_a_folder_of_a_zip_is_read(tmp_path, zarr_format, prefix):
    eps = make_episodes()
    write_episodes(tmp_path / "s", eps, zarr_format)
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/pusht/._.zgroup", b"junk")
        for file in sorted((tmp_path / "s").rglob("*")):
            archive.write(file, prefix + file.relative_to(tmp_path / "s").as_posix())
    assert_same(read_episodes(path), eps)
    with zipfile.ZipFile(path, "a") as archive:
        for file in sorted((tmp_path / "s").rglob("*")):
            archive.write(
                file,
                "/".join(["other"] * prefix.count("/"))
                + f"/{file.relative_to(tmp_path / 's').as_posix()}",
            )
    with pytest.raises(EpisodeError, match="several stores"):
        read_episodes(path)


def test_zarr_reads_a_written_store(tmp_path):
    write_episodes(tmp_path / "s", make_episodes(), 3)
    root = zarr.open_group(tmp_path / "s", mode="r")
    assert dict(root.attrs) == ATTRS
    assert np.asarray(root["meta/episode_ends"]).tolist() == [4, 10]


# --- writing -----------------------------------------------------------------------------------


@NAMES
def test_failed_write_leaves_the_old_store(tmp_path, name, monkeypatch):
    path, old = tmp_path / name, make_episodes()
    write_episodes(path, old)

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module, "_sync", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_episodes(path, make_episodes((2,)))
    assert_same(read_episodes(path), old)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_write_refuses_to_replace_other_files(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    (tmp_path / "notes").write_text("hello")
    (tmp_path / "folder.zip").mkdir()
    for name in ("photos", "notes", "folder.zip"):
        with pytest.raises(EpisodeError, match="is not an episode store"):
            write_episodes(tmp_path / name, make_episodes())
    assert (tmp_path / "photos" / "cat.jpg").exists()
    (tmp_path / "empty").mkdir()
    write_episodes(tmp_path / "empty", make_episodes())
    assert_same(read_episodes(tmp_path / "empty"), make_episodes())


@pytest.mark.parametrize("key", ["", "a/b", "a\\b", ".hidden", "__x"])
def test_invalid_keys_are_refused(tmp_path, key):
    with pytest.raises(EpisodeError, match="cannot be a key"):
        write_episodes(tmp_path / "s", Episodes({key: np.zeros((2, 1))}, np.array([2])))


@pytest.mark.parametrize("value", [object(), float("nan"), np.float32(1)])
def test_attributes_must_be_json(tmp_path, value):
    with pytest.raises(EpisodeError, match="plain JSON"):
        write_episodes(tmp_path / "s", make_episodes(attrs={"rate_hz": value}))
    assert not (tmp_path / "s").exists()


# --- appending ---------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("chunk_bytes", [48, 1 << 20])
def test_appended_episodes_follow_the_stored_ones(tmp_path, zarr_format, chunk_bytes, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk_bytes)
    parts = [make_episodes((4, 6)), make_episodes((3,), 1), make_episodes((7, 1, 2, 5), 2)]
    path = tmp_path / "s"
    write_episodes(path, parts[0], zarr_format)
    for part in parts[1:]:
        append_episodes(path, part)
    assert_same(read_episodes(path), concatenated(*parts))


@FORMATS
def test_append_refreshes_consolidated_metadata(tmp_path, zarr_format):
    path = tmp_path / "s"
    write_episodes(path, make_episodes(), zarr_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: not in the format 3 specification
        zarr.consolidate_metadata(path)
        append_episodes(path, make_episodes((3,)))
    root = zarr.open_group(path, mode="r", use_consolidated=True)
    assert np.asarray(root["data/action"]).shape == (13, 2)
    assert len(read_episodes(path)) == 3


@FORMATS
def test_append_killed_at_any_write_loses_no_episode(tmp_path, zarr_format, monkeypatch):
    """After a kill at any file operation, the store holds the old episodes or all of them."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 48)
    old, killed, new = make_episodes((4, 6)), make_episodes((5, 2), 1), make_episodes((3, 3), 2)
    write_episodes(tmp_path / "start", old, zarr_format)
    remaining = [0]

    class Killed(BaseException):
        pass

    def count():
        if remaining[0] == 0:
            raise Killed
        remaining[0] -= 1

    set_, delete, replace = LocalStore.set, LocalStore.delete, Path.replace

    async def counted_set(self, key, value):
        count()
        await set_(self, key, value)

    async def counted_delete(self, key):
        count()
        await delete(self, key)

    def counted_replace(self, target):
        if "/.episode_ends.tmp/" in self.as_posix():
            count()
        return replace(self, target)

    outcomes, operations, done = set(), 0, False
    while not done:
        path = tmp_path / f"s{operations}"
        shutil.copytree(tmp_path / "start", path)
        remaining[0] = operations
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "set", counted_set)
            patch.setattr(LocalStore, "delete", counted_delete)
            patch.setattr(Path, "replace", counted_replace)
            try:
                append_episodes(path, killed)
                done = True
            except Killed:
                done = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = read_episodes(path)
            assert_same(stored, concatenated(old, killed) if len(stored) == 4 else old)
        outcomes.add(len(stored))
        append_episodes(path, new)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(read_episodes(path), concatenated(stored, new))
        operations += 1
    assert operations > 10
    assert outcomes == {2, 4}


def test_leftover_rows_are_ignored_with_a_warning(tmp_path):
    write_episodes(tmp_path / "s", make_episodes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.open_array(tmp_path / "s" / "data" / "action", mode="r+")
        array.append(np.full((3, 2), np.nan, np.float32))
    with pytest.warns(UserWarning, match="3 rows beyond the last episode"):
        assert_same(read_episodes(tmp_path / "s"), make_episodes())


def test_incompatible_episodes_are_not_appended(tmp_path):
    write_episodes(tmp_path / "s", make_episodes())
    write_episodes(tmp_path / "s.zip", make_episodes())
    good = make_episodes()
    with pytest.raises(EpisodeError, match="append to a folder"):
        append_episodes(tmp_path / "s.zip", good)
    with pytest.raises(EpisodeError, match="does not exist"):
        append_episodes(tmp_path / "absent", good)
    fewer = Episodes({"action": good.arrays["action"]}, good.ends)
    with pytest.raises(EpisodeError, match="both must be equal"):
        append_episodes(tmp_path / "s", fewer)
    wider = Episodes(good.arrays | {"action": np.zeros((10, 3), np.float32)}, good.ends)
    with pytest.raises(EpisodeError, match='"action" has rows of shape'):
        append_episodes(tmp_path / "s", wider)
    typed = Episodes(good.arrays | {"image": np.zeros((10, 3, 4, 3))}, good.ends)
    with pytest.raises(EpisodeError, match='"image" has rows'):
        append_episodes(tmp_path / "s", typed)
    assert_same(read_episodes(tmp_path / "s"), good)


# --- paths and links ---------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("linked", ["data", "data/action", "meta/episode_ends", "."])
def test_linked_folders_are_read(tmp_path, zarr_format, linked):
    path, elsewhere = tmp_path / "s", tmp_path / "disk"
    write_episodes(path, make_episodes(), zarr_format)
    (path / linked).rename(elsewhere)
    (path / linked).symlink_to(elsewhere)
    assert_same(read_episodes(path), make_episodes())
    append_episodes(path, make_episodes((3,), 1))
    assert len(read_episodes(path)) == 3
    elsewhere.rename(tmp_path / "gone")
    message = "is a link to .*disk, which does not exist|does not exist"
    with pytest.raises(EpisodeError, match=message):
        read_episodes(path)


@FORMATS
def test_dangling_links_are_named_when_read(tmp_path, zarr_format):
    path = tmp_path / "s"
    write_episodes(path, make_episodes(), zarr_format)
    shutil.rmtree(path / "data" / "image")
    (path / "data" / "image").symlink_to(tmp_path / "unmounted")
    assert list(read_episodes(path, ["action"]).arrays) == ["action"]
    with pytest.raises(EpisodeError, match=r"data/image is a link to .*unmounted, which does"):
        read_episodes(path)
    chunk = chunk_of(path, "data/zero")
    chunk.unlink()
    chunk.symlink_to(tmp_path / "annex")
    with pytest.raises(EpisodeError, match=r"data/zero/.* is a link to .*annex"):
        read_episodes(path, ["zero"])


def test_cyclic_links_are_read_without_a_loop(tmp_path):
    path = tmp_path / "s"
    write_episodes(path, make_episodes())
    for name in ("a", "b", "c"):
        (path / "data" / name).symlink_to(path)
    (path / "self").symlink_to("self")
    assert_same(read_episodes(path), make_episodes())
    append_episodes(path, make_episodes((3,), 1))
    assert len(read_episodes(path)) == 3


@NAMES
def test_writing_to_a_link_replaces_its_target(tmp_path, name):
    (tmp_path / "disk").mkdir()
    write_episodes(tmp_path / "disk" / name, make_episodes((2,)))
    (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    write_episodes(tmp_path / name, make_episodes())
    assert (tmp_path / name).is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == [
        "disk", name,
    ]  # fmt: skip
    assert_same(read_episodes(tmp_path / "disk" / name), make_episodes())


@NAMES
def test_paths_and_keys_may_contain_any_character(tmp_path, name):
    folder = tmp_path / "a [1]* {b}=c, 'd' größe"
    episodes = Episodes({"arm [0]*": np.ones((2, 1)), "größe": np.zeros((2, 2))}, np.array([2]))
    write_episodes(folder / name, episodes)
    assert_same(read_episodes(folder / name), episodes)
