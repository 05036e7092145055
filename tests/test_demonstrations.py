"""Sources of demonstrations, and errors if there are none."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import compose_config

from ebt_policy.data.adroit_door import load_adroit_door
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes
from ebt_policy.data.push_t import load_push_t
from ebt_policy.data.task_family import TASK_FAMILIES, TaskFamily
from ebt_policy.errors import ConfigError
from ebt_policy.io import download as fetching
from ebt_policy.io.download import DownloadError
from ebt_policy.io.local_data import local_data
from ebt_policy.policies.task_config import PolicyTaskConfig


@pytest.fixture
def offline_folder(tmp_path, monkeypatch):
    """Change to an empty folder, without local data, cached data or network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EBT_POLICY_DATA", raising=False)
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))

    def refuse(url):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    return tmp_path


def task(*overrides: str) -> PolicyTaskConfig:
    return PolicyTaskConfig.from_config(compose_config(*overrides))


def write_door_file(path, **changes) -> str:
    rows = {"observations": np.zeros((7, 39)), "actions": 2 * np.ones((7, 28))}
    np.savez(path, **{**rows, "episode_ends": np.array([3, 7]), **changes})
    return str(path)


def test_user_task_family_loads_its_demonstrations(monkeypatch):
    monkeypatch.setattr(TASK_FAMILIES, "_items", dict(TASK_FAMILIES._items))
    stored = Episodes({"obs": np.zeros((3, 2)), "action": np.ones((3, 1))}, np.array([3]))

    @TASK_FAMILIES.register("chess")
    class Chess(TaskFamily):
        def load(self, config):
            return stored, f"{config.name} by hand"

    config = task("task=metaworld", "task.name=opening", "task.family=chess")
    assert config.demonstrations() == (stored, "opening by hand")


def test_first_row_of_each_adroit_demonstration_is_dropped(tmp_path):
    rows = np.arange(7.0)[:, None] * np.ones(39)
    path = write_door_file(tmp_path / "door.npz", observations=rows)
    episodes, note = task("task=adroit_door", f"task.path={path}").demonstrations()
    assert episodes.lengths.tolist() == [2, 3] and note.startswith("adroit_door: 2 demonstrations")
    assert episodes.arrays["obs"][:, 0].tolist() == [1, 2, 4, 5, 6]
    assert episodes.arrays["action"].max() == 1  # clipped to the hand's action range


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((7, 38))}, "observations must have 39 columns"),
        ({"actions": np.zeros((7, 27))}, "actions 28"),
        ({"episode_ends": np.array([3, 8])}, "the episodes end at row 8"),
        ({"episode_ends": np.array([1, 7])}, "episode 0 has a single row"),
        ({"episode_ends": np.array([3.5, 7])}, "must be integers"),
        ({"observations": np.full((7, 39), np.nan)}, r'"obs" has NaN .* row 0 \(episode 0\)'),
        ({"actions": np.full((7, 28), "x")}, "cannot be read .*; download it again"),
        ({"observations": np.full((7, 39), {})}, "cannot be read .*; download it again"),
    ],
)
def test_invalid_adroit_files_are_refused(tmp_path, changes, message):
    path = write_door_file(tmp_path / "door.npz", **changes)
    with pytest.raises(EpisodeError, match=message) as caught:
        load_adroit_door(path)
    assert path in str(caught.value)


def test_damaged_or_missing_adroit_files_are_errors(offline_folder):
    with pytest.raises(EpisodeError, match=r"put door_human_25demos\.npz into \$EBT_POLICY_DATA"):
        load_adroit_door(None)
    with pytest.raises(EpisodeError, match=r"no Adroit demonstrations at gone\.npz"):
        load_adroit_door("gone.npz")
    path = write_door_file(offline_folder / "door.npz")
    (offline_folder / "door.npz").write_bytes((offline_folder / "door.npz").read_bytes()[:300])
    with pytest.raises(EpisodeError, match=r"cannot be read .* download it again"):
        load_adroit_door(path)
    with (offline_folder / "door.npz").open("wb") as file:
        np.save(file, np.zeros(3))  # np.load returns an array, not an archive
    with pytest.raises(EpisodeError, match=r"cannot be read .* download it again"):
        load_adroit_door(path)


def test_offline_error_suggests_the_record_command(offline_folder):
    with pytest.raises(DownloadError) as caught:
        task("task=lift").demonstrations()
    for text in ("robomimic", "check the network", "python -m ebt_policy.record task=lift"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_download_checks_the_checksum_of_the_hub(offline_folder, monkeypatch):
    calls = []
    metadata = type("Metadata", (), {"etag": "a" * 64})
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: metadata)
    monkeypatch.setattr(fetching, "fetch", lambda *arguments: calls.append(arguments))
    fetching.fetch_from_hub("amandlek/robomimic", "v1.5/lift/ph/low_dim_v15.hdf5", "lift.hdf5")
    ((url, name, checksum),) = calls
    assert url.endswith("datasets/amandlek/robomimic/resolve/main/v1.5/lift/ph/low_dim_v15.hdf5")
    assert (name, checksum) == ("lift.hdf5", "a" * 64)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=metaworld", "task.demos=mine"],
            "demos='mine' is unknown; use null, human",
        ),
        (
            ["task=lift", "task.actions=joints"],
            "='joints' is unknown; use delta",
        ),
        (["task=robosuite", "task.scene=Fold"], r"task\.scene must be one of Lift"),
        (["task=push_t", "+task.family=chess"], "task.family=chess is unknown; there are .*push_t"),
        (["task=lift", "+task.mirror=true"], "belong to Push-T"),
    ],
)
def test_unknown_task_options_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        task(*overrides)


def test_recorded_episodes_are_demonstrations_of_a_robosuite_task(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"obs": rng.random((40, 23)), "action": rng.random((40, 10))}
    write_episodes(tmp_path / "mine", Episodes(arrays, np.array([20, 40])))
    path_override = f"task.path={tmp_path / 'mine'}"
    episodes, note = PolicyTaskConfig.from_config(
        compose_config("task=lift", path_override)
    ).demonstrations()
    assert len(episodes) == 2 and episodes.arrays["action"].shape == (40, 10) and "mine" in note
    write_episodes(tmp_path / "mine", Episodes(arrays, np.array([20, 40]), {"rate_hz": 50}))
    with pytest.raises(EpisodeError, match="mine has rate_hz=50, but the task needs 20"):
        PolicyTaskConfig.from_config(compose_config("task=lift", path_override)).demonstrations()
    write_episodes(tmp_path / "mine", Episodes({"action": arrays["action"]}, np.array([20, 40])))
    with pytest.raises(EpisodeError, match="mine has no obs, which lift needs; it has action"):
        PolicyTaskConfig.from_config(compose_config("task=lift", path_override)).demonstrations()
    steps = ("task.actions=delta", "task.relative_to=null")
    with pytest.raises(ConfigError, match="has absolute actions"):
        PolicyTaskConfig.from_config(
            compose_config("task=lift", path_override, *steps)
        ).demonstrations()


@pytest.mark.parametrize("load", [lambda: load_push_t(), lambda: load_adroit_door(None)])
def test_missing_data_folder_is_an_error_before_any_download(load, tmp_path, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_DATA", str(tmp_path / "typo"))
    monkeypatch.setattr("ebt_policy.data.push_t._download", None)
    with pytest.raises(ConfigError, match=r"EBT_POLICY_DATA=.*typo is not a folder; correct"):
        load()


def test_data_folder_may_start_with_a_tilde(tmp_path, monkeypatch):
    (tmp_path / "here").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EBT_POLICY_DATA", "~")
    assert local_data("here") == tmp_path / "here"
