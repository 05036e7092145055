from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from ebt_policy.data.episodes import read_episodes
from envs import record as module
from envs.record import Settings, main, parse, record
from envs.spec import EnvSpec

ATTRS = {"rate_hz": 10, "units": {"state": "px"}, "source": "a test"}

# An episode of seed s succeeds, after s + 1 steps, when s is odd. Seed `raise_on` breaks.
LOTTERY = """
import gymnasium
import numpy as np

class Lottery(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, render_mode=None, raise_on=None, odds=2):
        self.raise_on, self.odds = raise_on, odds

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
    """Make EnvSpecs of an environment whose odd seeds succeed."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "lottery_env.py").write_text(LOTTERY)
    monkeypatch.syspath_prepend(folder)
    return lambda **kwargs: EnvSpec("lottery_env:Lottery-v0", 50, 2, 8, kwargs)


class Noise:
    """Actions from the episodes' own generators, some outside the action space."""

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

    def predict_chunk(self, obs, prefix=None, deadline_s=None, generator=None):
        noise = [torch.randn(16, 2, generator=g) for g in generator or []]
        return SimpleNamespace(actions=torch.stack(noise))


def test_only_successes_are_written(lottery, tmp_path):
    output, progress = tmp_path / "demos.zarr.zip", []
    returned = record(
        Noise(),
        lottery(),
        5,
        output,
        attrs=ATTRS,
        workers=2,
        on_progress=lambda *counts: progress.append(counts),
    )
    stored = read_episodes(output)
    assert stored.attrs == {**ATTRS, "seeds": [1, 3, 5, 7, 9]} == returned.attrs
    assert stored.lengths.tolist() == [2, 4, 6, 8, 10]
    assert {k: (v.shape, v.dtype.name) for k, v in stored.arrays.items()} == {
        "state": ((30, 2), "float32"),
        "action": ((30, 2), "float32"),
    }
    episode = stored.episode(2)
    np.testing.assert_array_equal(episode["state"], [[5, t] for t in range(6)])
    assert np.abs(stored.arrays["action"]).max() == 1  # as executed: clipped
    assert progress[0] == (0, 0) and progress[-1] == (6, 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demos.zarr.zip", "modules"]


def test_an_interrupted_recording_goes_on(lottery, tmp_path):
    whole = record(Noise(), lottery(), 6, tmp_path / "whole.zarr", attrs=ATTRS, workers=2)
    output, progress = tmp_path / "demos.zarr", []
    with pytest.raises(RuntimeError, match="killed"):
        record(Noise(), lottery(raise_on=10), 6, output, attrs=ATTRS, workers=2)
    assert not output.exists() and len(read_episodes(tmp_path / "demos.zarr.partial")) == 4
    # Another number of workers makes no difference. Seed 7 was the last success.
    finished = record(
        Noise(),
        lottery(raise_on=3),
        6,
        output,
        attrs=ATTRS,
        workers=1,
        on_progress=lambda *counts: progress.append(counts),
    )
    assert progress[0] == (4, 8)
    assert finished.attrs == whole.attrs and (finished.ends == whole.ends).all()
    stored = read_episodes(output)
    for key in ("state", "action"):
        np.testing.assert_array_equal(stored.arrays[key], whole.arrays[key])
    assert not (tmp_path / "demos.zarr.partial").exists()


def test_enough_finished_episodes_need_no_more_rollouts(lottery, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        record(Noise(), lottery(raise_on=4), 9, tmp_path / "demos.zarr", attrs=ATTRS, workers=2)
    broken = EnvSpec("NoSuch-v0", 10)
    finished = record(Noise(), broken, 2, tmp_path / "demos.zarr", attrs=ATTRS)
    assert finished.attrs["seeds"] == [1, 3]


def test_a_recording_with_other_settings_is_not_continued(lottery, tmp_path):
    output = tmp_path / "demos.zarr"
    with pytest.raises(RuntimeError, match="killed"):
        record(Noise(), lottery(raise_on=4), 9, output, attrs=ATTRS, workers=2)
    with pytest.raises(ValueError, match="other settings"):
        record(Noise(), lottery(), 9, output, attrs={**ATTRS, "source": "another"}, workers=2)


def test_existing_output_is_left_alone(lottery, tmp_path):
    output = tmp_path / "demos.zarr.zip"
    output.write_text("precious")
    with pytest.raises(FileExistsError, match="remove it or choose another"):
        record(Noise(), lottery(), 1, output, attrs=ATTRS)
    assert output.read_text() == "precious"


def test_nothing_to_record_is_refused(lottery, tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        record(Noise(), lottery(), 0, tmp_path / "demos.zarr", attrs=ATTRS)


def test_a_hopeless_policy_is_given_up(lottery, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 10)
    with pytest.raises(ValueError, match=r"only 0 of 12 episodes succeeded"):
        record(Noise(), lottery(odds=1), 3, tmp_path / "demos.zarr", attrs=ATTRS, workers=2)


def test_evaluation_seeds_are_never_used(lottery, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EVALUATION_SEED", 7)
    with pytest.raises(ValueError, match=r"only 3 of 7"):
        record(Noise(), lottery(raise_on=7), 4, tmp_path / "demos.zarr", attrs=ATTRS, workers=2)


def test_arguments_are_read():
    assert parse(["checkpoint=a=b", "output=o.zip"]) == Settings("a=b", "o.zip")
    given = ["task=push_t", "checkpoint=c", "output=o", "episodes=3", "workers=2"]
    assert parse(given) == Settings("c", "o", "push_t", 3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing settings: checkpoint=..., output=..."),
        (["checkpoint=c"], "missing settings: output=..."),
        (["checkpoint=c", "output=o", "seed=3"], "unknown setting 'seed'"),
        (["checkpoint=c", "output=o", "output=p"], "output is given twice"),
        (["checkpoint=c", "output="], "key=value"),
        (["--help"], "key=value"),
        (["checkpoint=c", "output=o", "episodes=many"], "whole number"),
        (["checkpoint=c", "output=o", "workers=0"], "above 0"),
    ],
)
def test_bad_arguments_are_explained(arguments, message, capsys):
    with pytest.raises(ValueError) as raised:
        parse(arguments)
    assert message in str(raised.value)


def test_command_line_records(lottery, tmp_path, monkeypatch, capsys):
    from ebt_policy import models

    monkeypatch.setattr(models, "load_policy", lambda path: Noise())
    output = tmp_path / "demos.zarr.zip"
    command = ["checkpoint=runs/a", f"output={output}", "episodes=2", "workers=1"]
    assert main(command) == 0
    stored = read_episodes(output)
    assert len(stored) == 2 and stored.attrs["rate_hz"] == 10
    assert "noise policy of 3 parameters, trained for 1,234 updates" in stored.attrs["source"]
    assert "runs/a" not in stored.attrs["source"]  # paths of a machine mean nothing elsewhere
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "task=fold"]) == 2
    assert "runs/a is a policy for task=push_t" in capsys.readouterr().err
