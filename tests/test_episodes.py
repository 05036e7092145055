"""Episodes on disk: round trips, appends, kills, and every way a store can be wrong."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from ebt_policy.data import episode_store as module
from ebt_policy.data.episode_store import append_episodes, read_episodes, write_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes

FORMATS = pytest.mark.parametrize("zarr_format", [2, 3])
NAMES = pytest.mark.parametrize("name", ["store.zarr", "store.zarr.zip"])
ATTRS = {"rate_hz": 10, "units": {"action": "px"}, "roles": {"action": "action"}}


def make(lengths=(4, 6), seed=0, attrs=None) -> Episodes:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    arrays = {
        "action": rng.normal(size=(n, 2)).astype(np.float32),
        "image": rng.integers(0, 255, size=(n, 3, 4, 3), dtype=np.uint8),
        "zero": np.zeros((n, 3)),  # equal to the fill value: must still have chunks
    }
    return Episodes(arrays, np.cumsum(lengths), ATTRS if attrs is None else attrs)


def assert_same(a: Episodes, b: Episodes) -> None:
    assert a.arrays.keys() == b.arrays.keys()
    for key in a.arrays:
        assert a.arrays[key].dtype == b.arrays[key].dtype
        np.testing.assert_array_equal(a.arrays[key], b.arrays[key])
    np.testing.assert_array_equal(a.ends, b.ends)
    assert a.attrs == b.attrs


def joined(*parts: Episodes) -> Episodes:
    arrays = {k: np.concatenate([p.arrays[k] for p in parts]) for k in parts[0].arrays}
    return Episodes(arrays, np.cumsum(np.concatenate([p.lengths for p in parts])), parts[0].attrs)


# --- in memory ---------------------------------------------------------------------------------


def test_episode_and_select():
    eps = make((4, 6, 3))
    assert len(eps) == 3
    assert eps.lengths.tolist() == [4, 6, 3]
    np.testing.assert_array_equal(eps.episode(1)["action"], eps.arrays["action"][4:10])
    np.testing.assert_array_equal(eps.episode(-1)["action"], eps.arrays["action"][10:])
    with pytest.raises(IndexError):
        eps.episode(3)
    picked = eps.select([2, 0])
    assert picked.ends.tolist() == [3, 7]
    np.testing.assert_array_equal(picked.episode(1)["image"], eps.episode(0)["image"])
    with pytest.raises(EpisodeError, match="no episodes"):
        eps.select([])


def test_joined_episodes():
    eps = make((4, 6, 3))
    both = eps.select([2]) + eps.select([0, 1])
    assert both.ends.tolist() == [3, 7, 13]
    np.testing.assert_array_equal(both.episode(2)["action"], eps.episode(1)["action"])
    with pytest.raises(EpisodeError, match="Cannot join"):
        eps + Episodes({"action": eps.arrays["action"]}, eps.ends)


@pytest.mark.parametrize(
    ("arrays", "ends", "message"),
    [
        ({"a": np.zeros((3, 1))}, [], "no episodes"),
        ({"a": np.zeros((3, 1))}, [[3]], "no episodes"),
        ({"a": np.zeros((3, 1))}, [-1, 3], "strictly increasing"),
        ({"a": np.zeros((3, 1))}, [0, 3], "strictly increasing"),
        ({"a": np.zeros((3, 1))}, [2, 2, 3], "strictly increasing"),
        ({"a": np.zeros((2, 1))}, [3], '"a" has shape .2, 1.'),
        ({"a": np.array(["x", "y"])}, [2], '"a" has type'),
        ({"a": np.zeros((2, 0))}, [2], '"a" has shape .2, 0., which holds no numbers'),
        (
            {"a": np.array([[0.0], [1.0], [np.nan]])},
            [1, 3],
            r'"a" has NaN or infinity in float32, first nan in row 2 \(episode 1\)',
        ),
        ({"a": np.array([[0.0], [-np.inf]])}, [2], "first -inf in row 1"),
        ({"a": np.array([0.0, 1e300])}, [2], r"first 1e\+300 in row 1"),  # infinite in float32
        ({"a": np.zeros(3)}, [1.5, 3.0], "must be integers, not float64"),
    ],
)
def test_wrong_episodes_are_refused(arrays, ends, message):
    with pytest.raises(EpisodeError, match=message):
        Episodes(arrays, np.array(ends))


def test_all_wrong_arrays_are_told_at_once():
    arrays = {f"a{i}": np.full((2, 1), np.nan) for i in range(7)}
    with pytest.raises(EpisodeError, match=r'"a0" has .*"a4" has .* And 2 more\.$') as told:
        Episodes(arrays, np.array([2]))
    assert '"a5"' not in str(told.value)


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
def test_round_trip(tmp_path: Path, zarr_format, name, lengths, shape, dtype):
    n = sum(lengths)
    values = np.random.default_rng(n).normal(size=(n, *shape), scale=50).astype(dtype)
    eps = Episodes({"x": values, "zero": np.zeros((n, 1), dtype)}, np.cumsum(lengths), ATTRS)
    path = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_episodes(path, eps, zarr_format)  # the second time over the first
        assert path.is_file() == name.endswith(".zip")
        assert_same(read_episodes(path), eps)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@FORMATS
@NAMES
def test_many_chunks_and_chosen_keys(tmp_path, zarr_format, name, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 64)
    eps = make((4, 9, 11))
    write_episodes(tmp_path / name, eps, zarr_format)
    assert_same(read_episodes(tmp_path / name), eps)
    assert list(read_episodes(tmp_path / name, keys=["image"]).arrays) == ["image"]


@FORMATS
@pytest.mark.parametrize("prefix", ["replay.zarr/", "pusht/pusht_cchi_v7_replay.zarr/"])
def test_store_inside_a_zip(tmp_path, zarr_format, prefix):
    eps = make()
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


def test_other_tools_can_read_it(tmp_path):
    write_episodes(tmp_path / "s", make(), 3)
    root = zarr.open_group(tmp_path / "s", mode="r")
    assert dict(root.attrs) == ATTRS
    assert np.asarray(root["meta/episode_ends"]).tolist() == [4, 10]


# --- writing -----------------------------------------------------------------------------------


@NAMES
def test_failed_write_leaves_the_old_store(tmp_path, name, monkeypatch):
    path, old = tmp_path / name, make()
    write_episodes(path, old)

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module, "_sync", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_episodes(path, make((2,)))
    assert_same(read_episodes(path), old)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_write_never_replaces_other_things(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    (tmp_path / "notes").write_text("hello")
    (tmp_path / "folder.zip").mkdir()
    for name in ("photos", "notes", "folder.zip"):
        with pytest.raises(EpisodeError, match="is no episode store"):
            write_episodes(tmp_path / name, make())
    assert (tmp_path / "photos" / "cat.jpg").exists()
    (tmp_path / "empty").mkdir()
    write_episodes(tmp_path / "empty", make())
    assert_same(read_episodes(tmp_path / "empty"), make())


@pytest.mark.parametrize("key", ["", "a/b", "a\\b", ".hidden", "__x"])
def test_bad_key(tmp_path, key):
    with pytest.raises(EpisodeError, match="cannot be a key"):
        write_episodes(tmp_path / "s", Episodes({key: np.zeros((2, 1))}, np.array([2])))


@pytest.mark.parametrize("value", [object(), float("nan"), np.float32(1)])
def test_attributes_must_be_json(tmp_path, value):
    with pytest.raises(EpisodeError, match="plain JSON"):
        write_episodes(tmp_path / "s", make(attrs={"rate_hz": value}))
    assert not (tmp_path / "s").exists()


# --- appending ---------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("chunk_bytes", [48, 1 << 20])
def test_append(tmp_path, zarr_format, chunk_bytes, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk_bytes)
    parts = [make((4, 6)), make((3,), 1), make((7, 1, 2, 5), 2)]
    path = tmp_path / "s"
    write_episodes(path, parts[0], zarr_format)
    for part in parts[1:]:
        append_episodes(path, part)
    assert_same(read_episodes(path), joined(*parts))


@FORMATS
def test_append_refreshes_consolidated_metadata(tmp_path, zarr_format):
    path = tmp_path / "s"
    write_episodes(path, make(), zarr_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: not yet in the format 3 specification
        zarr.consolidate_metadata(path)
        append_episodes(path, make((3,)))
    root = zarr.open_group(path, mode="r", use_consolidated=True)
    assert np.asarray(root["data/action"]).shape == (13, 2)
    assert len(read_episodes(path)) == 3


@FORMATS
def test_append_killed_at_any_write(tmp_path, zarr_format, monkeypatch):
    """Whatever file operation is the last one, the store holds the old episodes or all of them."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 48)
    old, killed, new = make((4, 6)), make((5, 2), 1), make((3, 3), 2)
    write_episodes(tmp_path / "start", old, zarr_format)
    left = [0]

    class Killed(BaseException):
        pass

    def count():
        if left[0] == 0:
            raise Killed
        left[0] -= 1

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
        left[0] = operations
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
            found = read_episodes(path)
            assert_same(found, joined(old, killed) if len(found) == 4 else old)
        outcomes.add(len(found))
        append_episodes(path, new)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(read_episodes(path), joined(found, new))
        operations += 1
    assert operations > 10
    assert outcomes == {2, 4}


def test_leftover_rows_are_ignored_with_a_warning(tmp_path):
    write_episodes(tmp_path / "s", make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.open_array(tmp_path / "s" / "data" / "action", mode="r+")
        array.append(np.full((3, 2), np.nan, np.float32))
    with pytest.warns(UserWarning, match="3 rows beyond the last episode"):
        assert_same(read_episodes(tmp_path / "s"), make())


def test_append_refuses(tmp_path):
    write_episodes(tmp_path / "s", make())
    write_episodes(tmp_path / "s.zip", make())
    good = make()
    with pytest.raises(EpisodeError, match="append to a folder"):
        append_episodes(tmp_path / "s.zip", good)
    with pytest.raises(EpisodeError, match="does not exist"):
        append_episodes(tmp_path / "absent", good)
    fewer = Episodes({"action": good.arrays["action"]}, good.ends)
    with pytest.raises(EpisodeError, match="must be the same"):
        append_episodes(tmp_path / "s", fewer)
    wider = Episodes(good.arrays | {"action": np.zeros((10, 3), np.float32)}, good.ends)
    with pytest.raises(EpisodeError, match='"action" holds rows of shape'):
        append_episodes(tmp_path / "s", wider)
    typed = Episodes(good.arrays | {"image": np.zeros((10, 3, 4, 3))}, good.ends)
    with pytest.raises(EpisodeError, match='"image" holds rows'):
        append_episodes(tmp_path / "s", typed)
    assert_same(read_episodes(tmp_path / "s"), good)


# --- damaged stores ----------------------------------------------------------------------------


def rezip(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def chunk_of(folder: Path, key: str) -> Path:
    array = zarr.open_array(folder / key, mode="r")
    return folder / key / array.metadata.encode_chunk_key((0,) * array.ndim)


def refused(folder: Path, message: str) -> None:
    """Both the folder and a zip of it are refused with one sentence that names the path."""
    for path in (folder, rezip(folder)):
        with pytest.raises(EpisodeError, match=message) as caught:
            read_episodes(path)
        assert str(path) in str(caught.value)


@FORMATS
@pytest.mark.parametrize("key", ["data/action", "data/zero", "meta/episode_ends"])
@pytest.mark.parametrize("cut", ["missing", "empty", "half", "flipped"])
def test_damaged_chunk(tmp_path, zarr_format, key, cut):
    write_episodes(tmp_path / "s", make((40, 60)), zarr_format)
    chunk = chunk_of(tmp_path / "s", key)
    content = bytearray(chunk.read_bytes())
    if cut == "missing":
        chunk.unlink()
    elif cut == "flipped":
        content[len(content) // 2] ^= 0x10
        chunk.write_bytes(content)
    else:
        chunk.write_bytes(content[: len(content) // 2 if cut == "half" else 0])
    refused(tmp_path / "s", f"{key} is damaged or incomplete")


@FORMATS
@pytest.mark.parametrize("key", ["data/action", "meta/episode_ends"])
def test_damaged_or_missing_metadata(tmp_path, zarr_format, key):
    write_episodes(tmp_path / "s", make(), zarr_format)
    metadata = tmp_path / "s" / key / (".zarray" if zarr_format == 2 else "zarr.json")
    metadata.write_text(metadata.read_text()[:50])
    refused(tmp_path / "s", f"{key} is damaged")
    shutil.rmtree(tmp_path / "s" / "meta" / "episode_ends")
    refused(tmp_path / "s", "meta/episode_ends is missing")


@FORMATS
def test_missing_data_and_keys(tmp_path, zarr_format):
    write_episodes(tmp_path / "s", make(), zarr_format)
    for path in (tmp_path / "s", rezip(tmp_path / "s")):
        with pytest.raises(EpisodeError, match='no key "state"; the keys are action, image, zero'):
            read_episodes(path, keys=["action", "state"])
    shutil.rmtree(tmp_path / "s" / "data")
    with pytest.raises(EpisodeError, match='no key "state"; the keys are none'):
        read_episodes(tmp_path / "s", keys=["state"])
    refused(tmp_path / "s", "no arrays")


def test_not_a_store(tmp_path):
    with pytest.raises(EpisodeError, match="absent does not exist"):
        read_episodes(tmp_path / "absent")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "readme").write_text("hello")
    refused(tmp_path / "s", "is not a zarr store")
    (tmp_path / "text.zip").write_text("this is no zip")
    with pytest.raises(EpisodeError, match="is not a zarr store"):
        read_episodes(tmp_path / "text.zip")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_zip_cut_short(tmp_path, part):
    path = tmp_path / "s.zip"
    write_episodes(path, make((40, 60)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(EpisodeError, match=r"s\.zip is not a zarr store, or was cut short"):
        read_episodes(path)


def foreign(path: Path, arrays: dict[str, np.ndarray], ends: np.ndarray, zarr_format) -> None:
    """A store written without our checks."""
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
def test_foreign_store_with_wrong_content(tmp_path, zarr_format, values, ends, message):
    foreign(tmp_path / "s", {"x": values}, ends, zarr_format)
    refused(tmp_path / "s", message)


@FORMATS
def test_chunks_that_zarr_leaves_out_are_fill_values(tmp_path, zarr_format):
    """By its specification; zarr itself stores no chunk of nothing but fill values."""
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
def test_absurd_shapes_are_one_sentence(tmp_path, zarr_format):
    rows = 10**15
    root = zarr.create_group(tmp_path / "s", zarr_format=zarr_format)
    for key, chunk in {"many": 1, "huge": rows}.items():
        root.create_array(f"data/{key}", shape=(rows,), dtype="f8", chunks=(chunk,))
    root.create_array("meta/episode_ends", data=np.array([rows]))
    with pytest.raises(EpisodeError, match="of 1,000,000,000,000,000 chunks nearly all are miss"):
        read_episodes(tmp_path / "s", ["many"])
    with (
        pytest.warns(UserWarning, match="1 of 1 chunks"),
        pytest.raises(EpisodeError, match=r"data/huge is damaged .*Unable to allocate"),
    ):
        read_episodes(tmp_path / "s", ["huge"])


@FORMATS
@pytest.mark.parametrize("linked", ["data", "data/action", "meta/episode_ends", "."])
def test_linked_folders_are_read(tmp_path, zarr_format, linked):
    path, elsewhere = tmp_path / "s", tmp_path / "disk"
    write_episodes(path, make(), zarr_format)
    (path / linked).rename(elsewhere)
    (path / linked).symlink_to(elsewhere)
    assert_same(read_episodes(path), make())
    append_episodes(path, make((3,), 1))
    assert len(read_episodes(path)) == 3
    elsewhere.rename(tmp_path / "gone")
    message = "is a link to .*disk, which is not there|does not exist"
    with pytest.raises(EpisodeError, match=message):
        read_episodes(path)


@FORMATS
def test_links_that_lead_nowhere_are_named_where_they_are_needed(tmp_path, zarr_format):
    path = tmp_path / "s"
    write_episodes(path, make(), zarr_format)
    shutil.rmtree(path / "data" / "image")
    (path / "data" / "image").symlink_to(tmp_path / "unmounted")
    assert list(read_episodes(path, ["action"]).arrays) == ["action"]
    with pytest.raises(EpisodeError, match=r"data/image is a link to .*unmounted, which is not th"):
        read_episodes(path)
    chunk = chunk_of(path, "data/zero")
    chunk.unlink()
    chunk.symlink_to(tmp_path / "annex")
    with pytest.raises(EpisodeError, match=r"data/zero/.* is a link to .*annex"):
        read_episodes(path, ["zero"])


def test_links_around_a_store_are_no_endless_loop(tmp_path):
    path = tmp_path / "s"
    write_episodes(path, make())
    for name in ("a", "b", "c"):
        (path / "data" / name).symlink_to(path)
    (path / "self").symlink_to("self")
    assert_same(read_episodes(path), make())
    append_episodes(path, make((3,), 1))
    assert len(read_episodes(path)) == 3


@NAMES
def test_writing_to_a_link_replaces_what_it_leads_to(tmp_path, name):
    (tmp_path / "disk").mkdir()
    write_episodes(tmp_path / "disk" / name, make((2,)))
    (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    write_episodes(tmp_path / name, make())
    assert (tmp_path / name).is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == [
        "disk", name,
    ]  # fmt: skip
    assert_same(read_episodes(tmp_path / "disk" / name), make())


@NAMES
def test_paths_and_keys_may_hold_any_character(tmp_path, name):
    folder = tmp_path / "a [1]* {b}=c, 'd' größe"
    episodes = Episodes({"arm [0]*": np.ones((2, 1)), "größe": np.zeros((2, 2))}, np.array([2]))
    write_episodes(folder / name, episodes)
    assert_same(read_episodes(folder / name), episodes)


@FORMATS
def test_unreadable_key_is_left_alone_unless_asked_for(tmp_path, zarr_format):
    write_episodes(tmp_path / "s", make(), zarr_format)
    metadata = tmp_path / "s" / "data" / "image" / (".zarray" if zarr_format == 2 else "zarr.json")
    metadata.write_text(metadata.read_text().replace('"zstd"', '"unheard_of"'))
    assert list(read_episodes(tmp_path / "s", keys=["action"]).arrays) == ["action"]
    refused(tmp_path / "s", "data/image is damaged or incomplete")
