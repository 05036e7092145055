"""Several data sets that are joined to one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import compose_config
from lerobot_files import ACTION, CAMERA, STATE, frames_of, rows_of, write_lerobot
from test_dataset_task import configure

from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes
from ebt_policy.data.frame_cache import digest_of
from ebt_policy.data.joined_dataset import open_datasets
from ebt_policy.errors import ConfigError
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.train import train


def write_store(path: Path, lengths: list[int], seed: int, **changes: object) -> Path:
    """Write an episode store of a point; ``changes`` overwrites or removes arrays (None)."""
    obs = np.cumsum(np.random.default_rng(seed).normal(size=(sum(lengths), 3)), axis=0)
    arrays = {"obs": obs.astype(np.float32), "action": (obs[:, :2] + 0.1).astype(np.float32)}
    rate = changes.pop("rate_hz", 10)
    arrays = {k: v for k, v in (arrays | changes).items() if v is not None}
    write_episodes(path, Episodes(arrays, np.cumsum(lengths), {"rate_hz": rate}))
    return path


@pytest.fixture
def stores(tmp_path) -> list[str]:
    """Demonstrations, and a recording with corrections."""
    human = np.arange(70) % 35 >= 20
    return [
        str(write_store(tmp_path / "demos", [30, 40], 0)),
        str(write_store(tmp_path / "corrections", [35, 35], 1, human=human, energy=np.zeros(70))),
    ]


def test_episodes_follow_one_another(stores):
    with open_datasets(stores) as joined, open_datasets(stores[1]) as second:
        assert joined.lengths.tolist() == [30, 40, 35, 35] and joined.fps == 10
        assert list(joined.features) == ["action", "obs", "human"]  # energy is not in both
        for name in ("action", "obs"):
            np.testing.assert_array_equal(
                joined.read(3, [name])[name], second.read(1, [name])[name]
            )
        assert joined.read(0, ["human"])["human"].all()  # demonstrations are by a person
        assert joined.read(2, ["human"])["human"].sum() == 15


def test_one_source_is_itself(stores):
    with open_datasets(stores[:1]) as alone:
        assert alone.format == "zarr"


def test_cameras_and_versions_are_joined(tmp_path):
    folders = [
        write_lerobot(tmp_path / version, version, rows_of([12, 9], seed), video=True)
        for seed, version in enumerate(("v2.1", "v3.0"))
    ]
    with open_datasets([str(folder) for folder in folders]) as joined:
        assert joined.instruction(3) == joined.parts[1].instruction(1)
        frames = joined.frames(3, CAMERA, [0, 8]).astype(int)
        assert np.abs(frames - frames_of(1, 9)[[0, 8]]).max() < 30  # video coding
        assert sum(map(len, joined.frame_batches(2, CAMERA))) == 12
        assert set(joined.features) == {STATE, ACTION, CAMERA}
        digest = digest_of(joined, [])
    files = sorted((folders[1] / "data").rglob("*.parquet"))
    files[0].write_bytes(files[0].read_bytes() + b" ")
    with open_datasets([str(folder) for folder in folders]) as changed:
        assert digest_of(changed, []) != digest  # so the frame cache is not used


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_hz": 20}, r"have different rates \(10, 20 rows per second\)"),
        ({"obs": np.zeros((60, 5))}, r"obs has different shapes in .*\(\(3,\); \(5,\)\)"),
        ({"obs": None, "action": None, "x": np.zeros(60)}, r"have no common feature; they have"),
    ],
)
def test_data_sets_that_do_not_fit(stores, tmp_path, changes, message):
    other = write_store(tmp_path / "other", [60], 2, **changes)
    with pytest.raises(EpisodeError, match=message):
        open_datasets([stores[0], str(other)])


def test_entries_must_have_the_same_order(tmp_path):
    paths = []
    for names in (["x", "y"], ["y", "x"]):
        path = write_store(tmp_path / "".join(names), [30], 0)
        zarr.open_group(path, mode="r+").attrs["action_names"] = names
        paths.append(str(path))
    with pytest.raises(EpisodeError, match=r"action has different entries in"):
        open_datasets(paths)


def test_unused_columns_may_differ_and_flags_have_one_shape(stores, tmp_path):
    flags = np.zeros((60, 1), np.uint8)
    other = write_store(tmp_path / "other", [60], 2, human=flags, energy=np.zeros((60, 1)))
    with pytest.warns(UserWarning, match="not used: energy"):
        joined = open_datasets([stores[1], str(other)])
    with joined:
        assert "energy" not in joined.features
        assert joined.read(2, ["human"])["human"].shape == (60,)
        assert joined.read(0, ["human"])["human"].sum() == 15


def test_missing_features_are_named(stores, tmp_path):
    other = write_store(tmp_path / "other", [60], 2, qpos=np.zeros((60, 2)))
    with pytest.warns(UserWarning, match="not all data sets have alike are not used: qpos"):
        open_datasets([stores[0], str(other)]).close()


def test_training_on_demonstrations_and_corrections(stores, tmp_path):
    config = configure(tmp_path / "x", "run", "task.policy_weight=0", "task.human_weight=2")
    config["task"]["path"] = stores
    task = PolicyTaskConfig.from_config(config).resolved()
    assert task.sources == stores
    weights = task.demonstrations()[0].arrays["weight"]
    assert weights[:70].tolist() == [2] * 70 and weights[70:].sum() == 2 * 30
    run = train(config)
    assert (run / "evaluation/report.html").exists()


def test_other_tasks_read_one_file(stores):
    config = compose_config("task=push_t", f"task.path=[{','.join(stores)}]")
    with pytest.raises(ConfigError, match=r"task\.path has 2 entries; only task=dataset reads"):
        PolicyTaskConfig.from_config(config).demonstrations()
