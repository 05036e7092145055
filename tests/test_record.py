"""Recording of demonstrations: successes, resuming, experts, perturbations and errors."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import compose_config

from ebt_policy import plugins as modules
from ebt_policy.data.dataset import open_dataset
from ebt_policy.data.episode_store import read_episodes
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.perturbations import PerturbationKind
from ebt_policy.errors import ConfigError, OutputError
from ebt_policy.policies import recording as module
from ebt_policy.policies.recording import Demonstrator, record_demonstrations
from ebt_policy.record import main

ATTRS = {"rate_hz": 10, "units": {"state": "px"}, "source": "a test"}

# The episode of seed s has s % 10 + 1 steps and succeeds if s is odd. Seed `raise_on` raises.
LOTTERY = """
import gymnasium
import numpy as np

class Lottery(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, render_mode=None, raise_on=None, odds=2, expert=False):
        self.raise_on, self.odds = raise_on, odds
        if expert:
            self.expert = lambda rng: lambda: rng.uniform(-1, 1, 2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed == self.raise_on:
            raise ZeroDivisionError("killed")
        self.t, self.seed = 0, seed
        return self._obs(), {"state": self._obs()}

    def _obs(self):
        return np.array([self.seed, self.t], dtype=np.float32)

    def step(self, action):
        self.t += 1
        over = self.t > self.seed % 10
        success = over and self.seed % self.odds == 1
        info = {"state": self._obs(), "is_success": success}
        return self._obs(), float(success), over, False, info

gymnasium.register("Lottery-v0", Lottery)
"""


@pytest.fixture
def lottery(tmp_path, monkeypatch):
    """Return a function that makes EnvSpecs of an environment in which odd seeds succeed."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "lottery_env.py").write_text(LOTTERY)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(modules, "_imported", {"lottery_env"})
    return lambda **kwargs: EnvSpec("lottery_env:Lottery-v0", 50, 2, 8, kwargs)


class Noise:
    """A policy of random actions from the episodes' generators, some of them out of bounds."""

    name, parameter_count = "noise", 3
    config: ClassVar = {
        "trained": {"steps": 1234},
        "demos": 5,
        "task": {
            "name": "push_t", "demos": None, "path": None, "validation_episodes": 4, "horizon": 16,
            "n_obs_steps": 2, "n_action_steps": 8,
            "env": {"env_id": "lottery_env:Lottery-v0", "max_steps": 50},
        },
    }  # fmt: skip

    def predict_chunk(self, obs, *, constraints=None, generator=None):
        noise = [torch.randn(16, 2, generator=g) for g in generator or []]
        return SimpleNamespace(actions=torch.stack(noise))

    def configure_inference(self, **changes):
        assert changes.keys() <= {"steps"}


def record(policy, spec, episodes, output, *, attrs=ATTRS, **options):
    """Record `policy`, or the expert if it is None, in the environment of `spec`."""
    return record_demonstrations(Demonstrator(policy, spec, attrs), episodes, output, **options)


def test_only_successes_are_written(lottery, tmp_path):
    output, progress = tmp_path / "demos.zarr.zip", []
    returned = record(
        Noise(),
        lottery(),
        5,
        output,
        workers=2,
        on_progress=lambda *counts: progress.append(counts),
    )
    stored = read_episodes(output)
    assert stored.attrs == {**ATTRS, "seeds": [1, 3, 5, 7, 9]} == returned.attrs
    assert stored.lengths.tolist() == [2, 4, 6, 8, 10]
    assert {k: (v.shape, v.dtype.name) for k, v in stored.arrays.items()} == {
        "obs": ((30, 2), "float32"),
        "state": ((30, 2), "float64"),
        "action": ((30, 2), "float32"),
    }
    episode = stored.episode(2)
    np.testing.assert_array_equal(episode["state"], [[5, t] for t in range(6)])
    assert np.abs(stored.arrays["action"]).max() == 1  # as executed: clipped
    assert progress[0] == (0, 0) and progress[-1] == (6, 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demos.zarr.zip", "modules"]


def test_interrupted_recording_resumes(lottery, tmp_path):
    uninterrupted = record(Noise(), lottery(), 6, tmp_path / "whole.zarr", workers=2)
    output, progress = tmp_path / "demos.zarr", []
    with pytest.raises(RuntimeError, match="killed"):
        record(Noise(), lottery(raise_on=10), 6, output, workers=2)
    assert not output.exists() and len(read_episodes(tmp_path / "demos.zarr.partial")) == 4
    # The number of workers has no effect. Seeds up to 7 are not repeated, so seed 3 cannot raise.
    finished = record(
        Noise(),
        lottery(raise_on=3),
        6,
        output,
        workers=1,
        on_progress=lambda *counts: progress.append(counts),
    )
    assert progress[0] == (4, 8)
    assert finished.attrs == uninterrupted.attrs and (finished.ends == uninterrupted.ends).all()
    stored = read_episodes(output)
    for key in ("state", "action"):
        np.testing.assert_array_equal(stored.arrays[key], uninterrupted.arrays[key])
    assert not (tmp_path / "demos.zarr.partial").exists()


def test_finished_recording_needs_no_rollouts(lottery, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        record(Noise(), lottery(raise_on=4), 9, tmp_path / "demos.zarr", workers=2)
    broken = EnvSpec("NoSuch-v0", 10)
    finished = record(Noise(), broken, 2, tmp_path / "demos.zarr")
    assert finished.attrs["seeds"] == [1, 3]


def test_recording_with_other_settings_is_not_resumed(lottery, tmp_path):
    output = tmp_path / "demos.zarr"
    with pytest.raises(RuntimeError, match="killed"):
        record(Noise(), lottery(raise_on=4), 9, output, workers=2)
    with pytest.raises(OutputError, match="other settings"):
        record(Noise(), lottery(), 9, output, attrs={**ATTRS, "source": "another"}, workers=2)


def test_existing_output_is_not_overwritten(lottery, tmp_path):
    output = tmp_path / "demos.zarr.zip"
    output.write_text("precious")
    with pytest.raises(OutputError, match="remove it or choose another"):
        record(Noise(), lottery(), 1, output)
    assert output.read_text() == "precious"


def test_concurrent_recordings_are_refused(lottery, tmp_path):
    def second_recording(*_):
        with pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on "):
            record(Noise(), lottery(), 2, output, workers=1)

    output = tmp_path / "demos.zarr"
    record(Noise(), lottery(), 2, output, workers=1, on_progress=second_recording)
    assert read_episodes(output).attrs["seeds"] == [1, 3]


def test_zero_episodes_are_refused(lottery, tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        record(Noise(), lottery(), 0, tmp_path / "demos.zarr")


def test_recording_gives_up_without_successes(lottery, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 10)
    with pytest.raises(ValueError, match=r"only 0 of 12 episodes succeeded"):
        record(Noise(), lottery(odds=1), 3, tmp_path / "demos.zarr", workers=2)


def test_evaluation_seeds_are_never_used(lottery, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EVALUATION_SEED", 7)
    with pytest.raises(ValueError, match=r"only 3 of 7"):
        record(Noise(), lottery(raise_on=7), 4, tmp_path / "demos.zarr", workers=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=push_t"], "task=push_t has no scripted expert; add checkpoint=RUN"),
        (["task=adroit_door"], "checkpoint=RUN"),
        (["task=push_t", "checkpoint=runs/none"], "there is no checkpoint at runs/none"),
        (["task=lift", "task.scene=Fold"], "task.scene must be one of Lift, Can"),
        (["task=lift", "episodes=many"], "episodes must be an integer, got 'many'"),
        (["task=lift", "episodes=0"], "episodes must be at least 1"),
        (["task=lift", "workers=0"], "workers must be at least 1"),
        (["task=metaworld", "+task.align=true"], "belong to Push-T"),
    ],
)
def test_invalid_arguments_are_explained(arguments, message, call_entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, error = call_entry(main, *arguments)
    assert code == 2 and message in error and "Traceback" not in error


def test_command_line_records(lottery, tmp_path, monkeypatch, call_entry):
    monkeypatch.setattr(module, "load_policy", lambda path: Noise())
    monkeypatch.chdir(tmp_path)
    command = ["task=push_t", "checkpoint=runs/a@steps=4", "episodes=2", "workers=1"]
    assert call_entry(main, *command, "lerobot=lerobot") == (0, "")
    stored = read_episodes(tmp_path / "demos" / "push_t.zarr.zip")
    assert len(stored) == 2 and stored.attrs["rate_hz"] == 10
    policy = "noise policy of 3 parameters, trained for 1,234 updates on 5 demonstrations, steps=4"
    assert policy in stored.attrs["source"]
    with open_dataset(tmp_path / "lerobot") as dataset:
        assert dataset.format == "lerobot" and len(dataset) == 2 and dataset.fps == 10
    code, error = call_entry(main, *command, "output=new.zarr.zip", "lerobot=lerobot")
    assert code == 2 and "lerobot exists; give a new file or folder" in error
    assert "runs/a" not in stored.attrs["source"]  # paths differ between machines
    code, error = call_entry(main, *command)
    assert code == 2 and "exists" in error
    code, error = call_entry(main, "task=lift", "checkpoint=runs/a")
    assert code == 2 and "checkpoint=runs/a is a policy for task=push_t" in error


def test_expert_of_the_environment_is_recorded(lottery, tmp_path):
    one_worker = record(None, lottery(expert=True), 5, tmp_path / "one.zarr", workers=1)
    assert one_worker.lengths.tolist() == [2, 4, 6, 8, 10] and one_worker.attrs["seeds"] == [
        1,
        3,
        5,
        7,
        9,
    ]
    three_workers = record(None, lottery(expert=True), 5, tmp_path / "many.zarr", workers=3)
    for key, rows in one_worker.arrays.items():
        np.testing.assert_array_equal(rows, three_workers.arrays[key])
    with pytest.raises(RuntimeError, match=r"no attribute 'expert'"):
        record(None, lottery(), 1, tmp_path / "none.zarr", workers=1)


@pytest.mark.metaworld
def test_metaworld_recording_is_trainable(tmp_path, monkeypatch, call_entry):
    pytest.importorskip("metaworld")
    from ebt_policy.policies.task_config import PolicyTaskConfig

    monkeypatch.chdir(tmp_path)
    command = ["task=metaworld", "task.scene=reach", "episodes=3", "workers=1"]
    assert call_entry(main, *command)[0] == 0
    task = PolicyTaskConfig.from_config(compose_config("task=metaworld", "task.scene=reach"))
    episodes, note = task.demonstrations()
    assert len(episodes) == 3 and note.startswith("metaworld-reach: 3 demonstrations from demos")
    assert set(episodes.arrays) == {"obs", "action", "state"}
    assert [episodes.arrays[key].shape[1] for key in ("obs", "action")] == [39, 4]


def test_missing_recording_error_names_the_record_command(tmp_path, monkeypatch):
    from ebt_policy.data.episodes import EpisodeError
    from ebt_policy.policies.task_config import PolicyTaskConfig

    monkeypatch.chdir(tmp_path)
    task = PolicyTaskConfig.from_config(compose_config("task=metaworld", "task.scene=door-open"))
    with pytest.raises(
        EpisodeError, match=r"ebt_policy\.record task=metaworld task\.scene=door-open"
    ):
        task.demonstrations()
    lift = PolicyTaskConfig.from_config(compose_config("task=lift", "task.demos=expert"))
    with pytest.raises(
        EpisodeError, match=r"record it with: python -m ebt_policy\.record task=lift"
    ):
        lift.demonstrations()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["perturb=kick"],
            "perturb=kick names several perturbations; a recording has one at",
        ),
        (["perturb=kick=5", "perturb=turn=9"], "such as perturb=kick=5"),
        (["perturb=wind"], "perturb=wind is unknown; there are kick, turn, or all."),
    ],
)
def test_only_one_perturbation_is_recorded(
    words, message, lottery, tmp_path, monkeypatch, call_entry
):
    monkeypatch.setattr(module, "load_policy", lambda path: Noise())
    kinds = {
        "kick": PerturbationKind("px", (25.0, 50.0)),
        "turn": PerturbationKind("degrees", (30.0,)),
    }
    monkeypatch.setattr(module, "known_perturbations", lambda spec: kinds)
    monkeypatch.chdir(tmp_path)
    command = ["task=push_t", "checkpoint=runs/a", "episodes=1", "workers=1"]
    code, error = call_entry(main, *command, *words)
    assert code == 2 and message in error
    assert not (tmp_path / "demos").exists()


@pytest.mark.slow
@pytest.mark.robomimic
def test_expert_recordings_include_recovery(tmp_path, call_entry):
    pytest.importorskip("robosuite")
    from ebt_policy.data.robomimic import read_robomimic

    output = tmp_path / "lift.hdf5"
    command = ["task=lift", "episodes=2", "workers=2", "perturb=object=8", f"output={output}"]
    assert call_entry(main, *command)[0] == 0
    for i in range(2):
        closed = read_robomimic("Lift", output, actions="delta").episode(i)["action"][:, -1] > 0
        assert np.diff(closed.astype(int)).tolist().count(1) >= 2  # it grasped the cube again
