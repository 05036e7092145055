"""``task=dataset``: training on a data set without an environment, and its held-out evaluation."""

from __future__ import annotations

import json
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compose_config
from lerobot_files import ACTION, CAMERA, STATE, rows_of, write_lerobot
from omegaconf import OmegaConf

from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes
from ebt_policy.data.frame_cache import StoredFrames
from ebt_policy.data.windows import Windows
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.policies import load_policy
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies
from ebt_policy.policies.held_out_errors import chosen_windows, load_held_out, measure_policy
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.train import train
from ebt_policy.training.batches import BatchSampler

LENGTHS = (40, 33, 50, 28)
TINY = (
    "task=dataset", "size.width=16", "size.heads=2", "size.layers=1", "device=cpu",
    "train.steps=6", "train.minutes=null", "train.batch_size=8", "train.warmup_steps=3",
    "train.compile=false", "train.log_every=2",
)  # fmt: skip


@pytest.fixture
def arm(tmp_path) -> Path:
    """Write a data set of a three-jointed arm, without cameras."""
    return write_lerobot(tmp_path / "arm", "v2.1", rows_of(LENGTHS))


def configure(path: Path, run: str, *overrides: str) -> dict[str, Any]:
    config = compose_config(*TINY, *overrides)
    config["task"]["path"], config["run_dir"] = str(path), str(path.parent / run)
    return config


def test_choices_are_printed_and_stored(arm, capsys):
    run = train(configure(arm, "run"))
    printed = capsys.readouterr().out
    assert "4 episodes, 151 rows, 10 Hz, lerobot format" in printed
    assert "action, 3 of 3 entries relative" in printed and "Set task.state_keys" in printed
    task: Any = OmegaConf.load(run / "config.yaml").task
    assert (task.fps, task.horizon, task.n_action_steps, task.validation_episodes) == (10, 16, 8, 1)
    assert (list(task.state_keys), task.action_key) == ([STATE], ACTION)
    assert list(task.relative_to) == [0, 1, 2] and task.cameras is None
    policy = load_policy(run)
    assert policy.shape.obs_dim == policy.shape.action_dim == 3 and policy.shape.horizon == 16
    chunk = policy.predict_chunk({"obs": torch.zeros(1, 2, 3)})
    assert chunk.actions.shape == (1, 16, 3) and bool(chunk.actions.isfinite().all())


def test_held_out_episodes_of_a_policy_without_a_seed(arm, tmp_path):
    policy = load_policy(train(configure(arm, "run")))
    del policy.config["seed"]  # LeRobot stores none
    for count, folder in ((1, tmp_path / "some"), (0, tmp_path / "none")):
        folder.mkdir()
        policy.config["task"]["validation_episodes"] = count
        policy.save(folder)
    (entry,) = load_policy_entries([str(tmp_path / "some")], torch.device("cpu"))
    assert len(load_held_out(entry).episodes) == 1
    arm.rename(tmp_path / "moved")
    (entry,) = load_policy_entries([str(tmp_path / "none")], torch.device("cpu"))
    with pytest.raises(ConfigError, match="was trained on all episodes of"):
        load_held_out(entry)


def test_the_report_has_errors_on_held_out_episodes(arm):
    run = train(configure(arm, "run"))
    summary = json.loads((run / "evaluation/summary.json").read_text())
    (entry,) = summary["entries"]
    assert entry["episodes"] == 1 and entry["error"]["mean"] > entry["hold_error"]["mean"] > 0
    assert "energy_gap" in entry and "score" not in entry
    report = (run / "evaluation/report.html").read_text()
    assert "Error over time ahead" in report and "Predicted and recorded actions" in report
    assert (
        "Repeating the last action, which policies do not observe,"
        in (run / "evaluation/table.md").read_text()
    )


def test_policies_are_compared_on_the_same_episodes_for_every_training_seed(arm, tmp_path):
    runs = [
        str(train(configure(arm, f"{model}-seed{seed}", f"model={model}", f"seed={seed}")))
        for model in ("ebt", "bc")
        for seed in (0, 1)
    ]
    entries = load_policy_entries(runs, torch.device("cpu"))
    rows = [load_held_out(entry).episodes.arrays["row"].tolist() for entry in entries]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    patterns = [str(tmp_path / "ebt-seed*"), str(tmp_path / "bc-seed*")]
    result = evaluate_policies(
        patterns, EvalConfig(1, 0, 0, 1), output=tmp_path / "out", device=torch.device("cpu"),
        command="x",
    )  # fmt: skip
    assert [len(entry["train_seed"]) for entry in result["entries"]] == [2, 2]
    assert "energy_gap" not in result["entries"][1]  # behaviour cloning has no energy
    (pair,) = result["paired"]
    assert pair["metric"] == "error" and pair["ci95"][0] <= pair["diff"] <= pair["ci95"][1]


def test_errors_of_a_perfect_prediction_are_zero(arm):
    run = train(configure(arm, "run"))
    (entry,) = load_policy_entries([str(run)], torch.device("cpu"))
    held_out, policy = load_held_out(entry), entry.model
    windows = held_out.task.windows(held_out.episodes)

    def recorded(obs, *, generator):
        index = torch.tensor([g.initial_seed() for g in generator])
        chunk = original(obs, generator=generator)
        return replace(chunk, actions=windows.gather(index)["action"])

    original = policy.predict_chunk
    policy.predict_chunk = recorded  # type: ignore[method-assign]
    result = measure_policy(policy, held_out)
    assert result["error"] == [0.0] and result["energy_gap"] == [0.0]
    assert max(result["by_step"][0]) == 0.0 and result["hold_error"][0] > 0
    # Rows outside of the episode, which repeat its first and last row, do not count.
    index = torch.tensor([0, 5, len(windows) - 1])
    is_real, (_, rows) = windows.is_real(index), windows.rows(index)
    assert is_real.tolist() == [
        [False] + [True] * 15, [True] * 16, [True] + (rows[2].diff() != 0).tolist(),
    ]  # fmt: skip
    assert not is_real[2, -1]


def test_the_baseline_repeats_the_last_recorded_action(arm):
    for steps in (1, 2):
        run = train(configure(arm, f"run{steps}", f"task.n_obs_steps={steps}"))
        (entry,) = load_policy_entries([str(run)], torch.device("cpu"))
        held_out = load_held_out(entry)
        hold = measure_policy(entry.model, held_out)["hold_error"][0]
        action = held_out.each()[0]["action"] / held_out.spread
        squares = [
            (action[i - 1] - action[i : i + 8]) ** 2
            for i in chosen_windows(held_out.windows[0], 8).tolist()
            if i > 0
        ]
        expected = np.sqrt(np.concatenate(squares).mean())
        assert hold == pytest.approx(expected, rel=1e-5)


def test_the_default_number_of_held_out_episodes_counts_long_enough_ones(tmp_path):
    path = write_lerobot(tmp_path / "arm", "v2.1", rows_of([3, 40, 4, 5]))
    task = PolicyTaskConfig.from_config(configure(path, "run")).resolved()
    assert task.validation_episodes == 0
    path = write_lerobot(tmp_path / "more", "v2.1", rows_of([40] * 6))
    task = PolicyTaskConfig.from_config(configure(path, "run")).resolved()
    assert task.validation_episodes == 2  # One episode would have no interval.


def test_only_selected_episodes_are_read(tmp_path, capsys):
    rows = rows_of(LENGTHS)
    rows[3][ACTION][5, 1] = np.nan
    path = write_lerobot(tmp_path / "arm", "v3.0", rows)
    run = train(configure(path, "run", "task.episodes=:3"))
    assert "dataset: 3 of 4 episodes, 123 rows" in capsys.readouterr().out
    assert load_policy(run).config["demos"] == 2


def test_episodes_outside_of_the_training_are_needed(arm, tmp_path):
    run = train(configure(arm, "run", "task.validation_episodes=0"))
    assert not (run / "evaluation").exists()
    with pytest.raises(ConfigError, match=r"trained on all episodes of .*; train with task.valid"):
        evaluate_policies(
            [str(run)], EvalConfig(1, 0, 0, 1), output=tmp_path / "out",
            device=torch.device("cpu"), command="x",
        )  # fmt: skip


def test_a_run_resumes_with_its_choices(arm):
    config = configure(arm, "run", "train.checkpoint_every=3")
    run = train(config)
    again = train(configure(arm, "run", "train.checkpoint_every=3", "resume=true"))
    assert again == run
    with pytest.raises(ConfigError, match="horizon"):
        train(configure(arm, "run", "task.horizon=24", "resume=true"))


def test_instead_of_an_environment(arm, tmp_path, tiny_run):
    run = train(configure(arm, "run"))
    with pytest.raises(ConfigError, match="task=dataset has no environment"):
        PolicyTaskConfig.from_config(load_policy(run).config).env_spec()
    with pytest.raises(ConfigError, match="run has no environment, but other entries have one"):
        evaluate_policies(
            [tiny_run, str(run)], EvalConfig(1, 0, 0, 1), output=tmp_path / "out",
            device=torch.device("cpu"), command="x",
        )  # fmt: skip


def test_a_recording_of_the_control_loop_is_a_data_set(tmp_path):
    rows = rows_of([40, 30])
    arrays = {
        "obs": np.concatenate([row[STATE] for row in rows]),
        "position": np.concatenate([row[STATE] for row in rows]).astype(float),
        "action": np.concatenate([row[ACTION] for row in rows]).astype(float),
        "energy": np.zeros(70), "mode": np.zeros(70, np.uint8),
    }  # fmt: skip
    write_episodes(tmp_path / "store", Episodes(arrays, np.array([40, 70]), {"rate_hz": 10}))
    run = train(configure(tmp_path / "store", "run"))
    assert load_policy(run).shape.obs_dim == 3


def test_ambiguous_rotations_are_warned_of(tmp_path):
    turn = np.linspace(0, 6, 60)
    half = np.stack([0 * turn, 0 * turn, np.sin(turn / 2), np.cos(turn / 2)], axis=1)
    half[20:] *= -1
    obs = np.concatenate([turn[:, None], half], axis=1)
    action = np.stack([turn, (turn + np.pi) % (2 * np.pi) - np.pi], axis=1)
    arrays = {"obs": obs, "action": action}
    attrs = {"rate_hz": 10, "action_names": ["x", "yaw"]}
    write_episodes(tmp_path / "arm", Episodes(arrays, np.array([30, 60]), attrs))
    task = PolicyTaskConfig.from_config(configure(tmp_path / "arm", "run")).resolved()
    with pytest.warns(UserWarning) as caught:
        task.demonstrations()
    messages = [str(warning.message) for warning in caught]
    assert any("yaw of action jump by a full turn" in text for text in messages)
    assert any("quaternion that begins with obs[1] of obs changes its sign" in t for t in messages)
    write_episodes(
        tmp_path / "smooth",
        Episodes(
            {"obs": np.abs(obs), "action": action[:, :1]}, np.array([30, 60]), {"rate_hz": 10}
        ),
    )
    task = PolicyTaskConfig.from_config(configure(tmp_path / "smooth", "run")).resolved()
    with warnings.catch_warnings(action="error"):
        task.demonstrations()


def test_an_environment_evaluates_the_policy(tmp_path):
    rng = np.random.default_rng(0)
    obs = 256 + np.cumsum(rng.normal(size=(60, 20)), axis=0)
    arrays = {"obs": obs, "action": obs[:, 18:] + 1}
    write_episodes(tmp_path / "store", Episodes(arrays, np.array([30, 60]), {"rate_hz": 10}))
    run = train(
        configure(
            tmp_path / "store", "run", "task.env={env_id: ebt_policy/PushT-v0, max_steps: 20}",
            "train.eval_every=0", "evaluation.episodes=1", "evaluation.videos=0",
            "evaluation.workers=1",
        )
    )  # fmt: skip
    (entry,) = json.loads((run / "evaluation/summary.json").read_text())["entries"]
    assert entry["score"]["mean"] >= 0 and entry["episodes"] == 1


@pytest.mark.robomimic
def test_a_subset_of_a_robomimic_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    rows = rows_of(LENGTHS)
    with h5py.File(tmp_path / "file.hdf5", "w") as file:
        for i, row in enumerate(rows):
            file[f"data/demo_{i}/actions"] = row[ACTION]
            file[f"data/demo_{i}/obs/joints"] = row[STATE]
        file["mask/good"] = np.array([b"demo_0", b"demo_2", b"demo_3"])
    config = configure(tmp_path / "file.hdf5", "run", "task.mask=good")
    run = train(config)
    assert load_policy(run).config["demos"] == 2  # one of three is held out
    with pytest.raises(ConfigError, match=r"task.mask=bad: .* has no such subset; it has good"):
        train(configure(tmp_path / "file.hdf5", "other", "task.mask=bad"))
    with pytest.raises(ConfigError, match="exclude each other"):
        train(configure(tmp_path / "file.hdf5", "other", "task.mask=good", "task.episodes=:2"))


# -- bad data -------------------------------------------------------------------------------------


def test_bad_data_is_reported_before_anything_is_written(arm, tmp_path):
    with pytest.raises(ConfigError, match=r"missing required option task.path="):
        train(configure(arm, "run") | {"task": compose_config(*TINY)["task"]})
    rows = rows_of(LENGTHS)
    rows[2][ACTION][5, 1] = np.nan
    broken = write_lerobot(tmp_path / "nan", "v3.0", rows)
    with pytest.raises(EpisodeError, match="episode 2 has NaN or infinity in action, first in row"):
        train(configure(broken, "bad"))
    short = write_lerobot(tmp_path / "short", "v3.0", rows_of([3, 4]))
    with pytest.raises(ConfigError, match="all of the 2 episodes are too short"):
        train(configure(short, "bad"))
    with pytest.raises(ConfigError, match=r"task.state_keys=observation.stat is unknown.*Did you"):
        train(configure(arm, "bad", "task.state_keys=[observation.stat]"))
    assert not list((tmp_path / "bad").glob("*.yaml"))


def test_automatic_choices_belong_to_this_task(demonstrations, tmp_path):
    for name, option in (("push_t", "task.relative_to=auto"), ("push_t_image", "task.cameras=all")):
        config = compose_config(f"task={name}", option, *TINY[1:])
        config["task"]["path"], config["run_dir"] = str(demonstrations), str(tmp_path / "run")
        with pytest.raises(ConfigError, match=f"{option} must be a list or null for task={name}"):
            train(config)
    config = compose_config("task=push_t", "task.horizon=null", *TINY[1:])
    with pytest.raises(ConfigError, match=r"task.horizon must be an integer for task=push_t, got"):
        train(config)


# -- cameras --------------------------------------------------------------------------------------


@pytest.mark.vision
def test_recorded_frames_are_learned_from(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    path = write_lerobot(tmp_path / "arm", "v3.0", rows_of(LENGTHS), video=True)
    run = train(configure(path, "run", "task.image_size=[16,24]", "vision.keypoints=2"))
    assert "Predictions and frames" in (run / "evaluation/report.html").read_text()
    policy = load_policy(parse_checkpoint(str(run))[0])
    assert policy.shape.cameras == {"top": [16, 24]}
    assert policy.vision is not None and policy.vision.config.keypoints == 2
    task = PolicyTaskConfig.from_config(policy.config)
    assert task.cameras == [CAMERA]


def test_frames_on_disk_equal_resident_ones(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (60, 8, 8, 3)).astype(np.uint8)
    rows = np.concatenate([np.arange(20, 60), np.arange(20)])  # two selected episodes
    arrays = {"obs": rng.normal(size=(60, 3)), "action": rng.normal(size=(60, 3))}
    windows = [
        Windows(
            arrays | {"top": images}, [40, 60], horizon=8, n_obs_steps=2, n_action_steps=4,
            cameras=["top"],
        )
        for images in (frames[rows], StoredFrames(frames, rows))
    ]  # fmt: skip
    index = torch.randperm(len(windows[0]))[:16]
    resident, stored = (w.gather(index)["top"] for w in windows)
    assert stored.dtype == torch.uint8 and torch.equal(resident, stored)


@pytest.mark.vision
def test_resident_and_streamed_frames_train_the_same_policy(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    path = write_lerobot(tmp_path / "arm", "v3.0", rows_of(LENGTHS), video=True)
    options = ("task.image_size=[16,24]", "vision.keypoints=2", "task.validation_episodes=0")
    logs, threads = [], []
    read = StoredFrames.read
    monkeypatch.setattr(
        StoredFrames, "read",
        lambda self, rows: threads.append(threading.current_thread().name) or read(self, rows),
    )  # fmt: skip
    for name, budget in (("resident", 1), ("streamed", 0)):
        run = train(configure(path, name, *options, f"task.resident_gb={budget}"))
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        logs.append([line["loss"] for line in lines if "loss" in line])
        if name == "resident":
            assert len(threads) == 1  # all rows at once
    assert logs[0] == logs[1] and len(logs[0]) == 3
    # The first batch is read when it is needed, and the others ahead by a thread.
    assert sum(name.startswith("ThreadPool") for name in threads) == 6


def test_batches_that_are_read_ahead_belong_to_their_step():
    class Rows:
        is_streamed = True

        def __len__(self) -> int:
            return 12

        def gather(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": index.clone()}

    class Resident(Rows):
        is_streamed = False

    ahead, plain = BatchSampler(Rows(), 4, seed=0), BatchSampler(Resident(), 4, seed=0)
    for step in (0, 1, 2, 3, 7, 8, 2, 2):  # also after a resume
        assert torch.equal(ahead.batch(step)["x"], plain.batch(step)["x"])
