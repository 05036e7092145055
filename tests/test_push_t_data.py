"""Push-T demonstrations: geometry, sources, and the published file."""

from __future__ import annotations

import os
import zipfile

import numpy as np
import pytest

from ebt_policy.data import push_t
from ebt_policy.data.episode_store import read_episodes, write_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes
from ebt_policy.data.push_t import aligned, content_digest, load_push_t, mirrored
from ebt_policy.envs.push_t_geometry import KEYPOINTS, keypoints, observation
from ebt_policy.io.download import DownloadError, cache_dir

needs_data = pytest.mark.skipif(
    not os.environ.get("EBT_POLICY_DATA"), reason="EBT_POLICY_DATA is not set"
)


def make(lengths=(4, 6)) -> Episodes:
    rng = np.random.default_rng(0)
    n = sum(lengths)
    arrays = {
        "state": rng.uniform(0, 512, size=(n, 5)).astype(np.float32),
        "action": rng.uniform(0, 512, size=(n, 2)).astype(np.float32),
        "img": np.zeros((n, 4, 4, 3), np.uint8),
    }
    return Episodes(arrays, np.cumsum(lengths))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Remove data folder, cache and network, and replace the shipped demonstrations."""
    monkeypatch.delenv("EBT_POLICY_DATA", raising=False)
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(push_t, "URL", "http://127.0.0.1:9/pusht.zip")
    package = tmp_path / "package"
    write_episodes(package / "demos" / "push_t_expert.zarr.zip", make((3, 2, 5)))
    monkeypatch.setattr(push_t.resources, "files", lambda _: package)
    return tmp_path


def official_zip(path, episodes: Episodes) -> None:
    """Write episodes in the layout of the published archive."""
    write_episodes(path.parent / "unzipped", episodes, 2)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((path.parent / "unzipped").rglob("*")):
            inside = file.relative_to(path.parent / "unzipped").as_posix()
            archive.write(file, f"pusht/pusht_cchi_v7_replay.zarr/{inside}")


# --- geometry ----------------------------------------------------------------------------------


def test_keypoints_turn_and_move_with_the_block():
    block = np.array([100, 200])
    upright = keypoints(np.array([0.0, 0, 100, 200, 0]))
    np.testing.assert_allclose(upright, KEYPOINTS + block)
    quarter = keypoints(np.array([0.0, 0, 100, 200, np.pi / 2]))
    turned = np.stack([-KEYPOINTS[:, 1], KEYPOINTS[:, 0]], axis=1)
    np.testing.assert_allclose(quarter, turned + block)
    full = keypoints(np.array([0.0, 0, 100, 200, 2 * np.pi]))
    np.testing.assert_allclose(full, upright)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5), (0, 5)])
def test_observation_has_20_numbers_for_each_state(shape):
    state = np.random.default_rng(0).uniform(0, 512, size=shape)
    obs = observation(state)
    assert obs.shape == (*shape[:-1], 20) and obs.dtype == np.float32
    np.testing.assert_allclose(obs[..., 18:], state[..., :2], rtol=1e-6)
    points = obs[..., :18].reshape(*shape[:-1], 9, 2)
    np.testing.assert_allclose(points, keypoints(state), rtol=1e-5, atol=1e-3)


def test_mirroring_twice_restores_the_episodes():
    goal = np.array([[100, 50, 256, 256, np.pi / 4]])
    episodes = Episodes({"state": goal, "action": np.array([[0.0, 512]])}, np.array([1]))
    image = mirrored(episodes)
    np.testing.assert_allclose(image.arrays["state"][0], [462, 412, 256, 256, np.pi / 4], rtol=1e-6)
    np.testing.assert_allclose(image.arrays["action"], [[0, 512]])
    np.testing.assert_allclose(image.arrays["obs"], observation(image.arrays["state"]), atol=1e-4)
    twice = mirrored(mirrored(make()))
    for key in ("state", "action"):
        np.testing.assert_allclose(twice.arrays[key], make().arrays[key], atol=1e-3)


def test_aligned_demonstrations_end_on_the_goal_and_are_moved_as_a_whole():
    episodes = make()
    moved = aligned(episodes)
    np.testing.assert_allclose(moved.arrays["obs"], observation(moved.arrays["state"]), atol=1e-3)
    assert moved.arrays["action"].min() >= 0 and moved.arrays["action"].max() <= 512
    starts = [0, *episodes.ends[:-1]]
    for begin, end in zip(starts, episodes.ends, strict=True):
        before, after = (e.arrays["state"][begin:end] for e in (episodes, moved))
        np.testing.assert_allclose(after[-1, 2:], [256, 256, np.pi / 4], atol=1e-3)
        turned = after[:, 4] - before[:, 4]
        np.testing.assert_allclose(turned, turned[0], atol=1e-4)
        for part in (slice(0, 2), slice(2, 4)):  # distances to the block's last position stay
            distances = [np.linalg.norm(s[:, part] - s[-1, 2:4], axis=1) for s in (before, after)]
            np.testing.assert_allclose(*distances, atol=1e-2)
    again = aligned(moved)
    np.testing.assert_allclose(again.arrays["state"], moved.arrays["state"], atol=1e-2)


@pytest.mark.parametrize("state", [np.zeros(4), np.zeros((3, 6)), np.float64(1)])
def test_state_must_have_5_numbers(state):
    with pytest.raises(ValueError, match="5 numbers"):
        keypoints(state)


# --- sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine", "mine.zip"])
def test_demonstrations_are_read_from_a_path(offline, name):
    write_episodes(offline / name, make())
    episodes, sentence = load_push_t(offline / name)
    assert sorted(episodes.arrays) == ["action", "obs", "state"]
    np.testing.assert_array_equal(episodes.arrays["obs"], observation(make().arrays["state"]))
    np.testing.assert_array_equal(episodes.arrays["action"], make().arrays["action"])
    assert episodes.ends.tolist() == [4, 10] and episodes.attrs["rate_hz"] == 10
    assert sentence == f"Push-T: 2 demonstrations from {offline / name}."


def test_expert_demonstrations_are_shipped(offline):
    episodes, sentence = load_push_t(demos="expert")
    assert len(episodes) == 3
    assert sentence == f"Push-T: 3 demonstrations {push_t.EXPERT}."


def test_falls_back_to_the_expert_without_a_network(offline):
    episodes, sentence = load_push_t()
    assert len(episodes) == 3
    assert "own expert" in sentence and push_t.URL in sentence and "\n" not in sentence


def test_human_demos_are_required_when_requested(offline):
    with pytest.raises(DownloadError, match="Could not download"):
        load_push_t(demos="human")


def test_published_archive_is_read_from_the_cache(offline, monkeypatch):
    cache_dir().mkdir()
    official_zip(cache_dir() / "pusht.zip", make())
    monkeypatch.setattr(push_t, "HUMAN_DIGEST", content_digest(make()))
    episodes, sentence = load_push_t(demos="human")
    assert len(episodes) == 2 and "by humans" in sentence


def test_other_archives_are_refused(offline):
    for content in (None, b"<html>moved</html>"):
        cache_dir().mkdir(exist_ok=True)
        file = cache_dir() / "pusht.zip"
        official_zip(file, make()) if content is None else file.write_bytes(content)
        with pytest.raises(DownloadError, match="does not contain the published"):
            load_push_t(demos="human")
        assert not file.exists()


def test_data_folder_without_the_file_falls_back_to_the_expert(offline, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_DATA", str(offline))
    assert "own expert" in load_push_t()[1]


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"rate_hz": 20}, "has rate_hz=20, but the task needs 10"),
        ({"units": {"action": "m"}}, "action in 'm', but the task needs px"),
        ({"rate_hz": 10.0, "units": {"state": "x, y: px", "time": "s"}}, None),
        ({"rate_hz": None, "units": "px"}, None),
    ],
)
def test_other_rates_and_units_are_refused(offline, attrs, message):
    arrays = {"state": np.ones((9, 5)), "action": np.ones((9, 2))}
    write_episodes(offline / "a", Episodes(arrays, np.array([9]), attrs))
    if message is None:
        assert len(load_push_t(offline / "a")[0]) == 1
        return
    with pytest.raises(EpisodeError, match=message):
        load_push_t(offline / "a")


def test_invalid_files_are_refused(offline):
    with pytest.raises(EpisodeError, match="does not exist"):
        load_push_t(offline / "absent.zip")
    eps = make()
    write_episodes(offline / "a", Episodes({"action": eps.arrays["action"]}, eps.ends))
    with pytest.raises(EpisodeError, match='no key "state"'):
        load_push_t(offline / "a")
    write_episodes(offline / "b", Episodes(eps.arrays | {"state": np.zeros((10, 7))}, eps.ends))
    with pytest.raises(EpisodeError, match=r'"state" must have shape \(rows, 5\)'):
        load_push_t(offline / "b")
    with pytest.raises(ValueError, match="is unknown"):
        load_push_t(demos="robot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"remove task\.path"):
        load_push_t(offline / "a", demos="expert")


# --- the published file ------------------------------------------------------------------------


@needs_data
def test_published_demonstrations_are_loaded():
    file = os.path.join(os.environ["EBT_POLICY_DATA"], "pusht", "pusht_cchi_v7_replay.zarr.zip")
    raw = read_episodes(file, keys=["state", "action", "keypoint"])
    assert content_digest(raw) == push_t.HUMAN_DIGEST
    difference = np.abs(keypoints(raw.arrays["state"]) - raw.arrays["keypoint"])
    assert difference.mean() < 0.05
    episodes, sentence = load_push_t()
    assert len(episodes) == 206 and "by humans" in sentence
    assert episodes.arrays["obs"].shape == (25650, 20)
    assert episodes.arrays["action"].shape == (25650, 2)


def test_shipped_demonstrations_reach_the_goal_from_varied_starts():
    episodes, _ = load_push_t(demos="expert")
    assert len(episodes) == 500 and episodes.lengths.max() == 200
    starts = episodes.arrays["obs"][np.concatenate([[0], episodes.ends[:-1]])]
    assert (starts.std(axis=0) > 50).all()  # px
    assert len(np.unique(starts.round(1), axis=0)) == len(episodes)
    goal = keypoints(np.array([0, 0, 256, 256, np.pi / 4]))
    ends = episodes.arrays["obs"][episodes.ends - 1, :18].reshape(-1, 9, 2)
    # The last row precedes the last action, so the T is near the goal, but not yet on it.
    assert np.linalg.norm(ends - goal, axis=-1).mean(axis=-1).max() < 20
