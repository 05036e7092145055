"""Checkpoints: files, crashes while saving, damaged files and malicious pickles."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, compose_config

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.io import atomic_write
from ebt_policy.models.base import CheckpointError
from ebt_policy.policies import Policy, build_policy, load_policy
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.training.checkpoint import (
    load_trainer_state,
    newest_checkpoint,
    save_checkpoint,
)

FILES = ["config.yaml", "format_version", "model.safetensors", "normalizer.json"]
SHAPE = {"obs_dim": 3, "action_dim": 2, "horizon": 16, "n_obs_steps": 2, "n_action_steps": 8}


@pytest.fixture
def policy() -> Policy:
    torch.manual_seed(0)
    normalizer = Normalizer.fit({"obs": torch.randn(9, 3), "action": torch.randn(9, 2)})
    return build_policy({**compose_config(*TINY), "shape": SHAPE}, normalizer)


@pytest.fixture
def saved(policy, tmp_path) -> Path:
    return save_checkpoint(tmp_path / "run", 7, policy, {"step": 7, "weights": torch.ones(3)})


def test_a_checkpoint_is_a_folder_of_plain_files(saved):
    assert saved.name == "step_00000007"
    assert sorted(p.name for p in saved.iterdir()) == sorted([*FILES, "trainer_state.pt"])
    state = load_trainer_state(saved)
    assert state["step"] == 7 and torch.equal(state["weights"], torch.ones(3))


def test_the_newest_two_checkpoints_are_kept(policy, tmp_path):
    for step in (9, 10, 100, 1000):
        save_checkpoint(tmp_path, step, policy, {"step": step})
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    assert names == ["step_00000100", "step_00001000"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / names[-1]


def test_run_folder_and_checkpoint_load_the_same_policy(saved):
    run = saved.parent.parent
    first, second = load_policy(run), EnergyPolicy.from_checkpoint(saved)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_no_checkpoint_before_the_first_save(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_policy(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="is empty; train first"):
        load_policy(tmp_path)


class Crash(BaseException):
    """Stand-in for a kill: no handler catches a BaseException."""


def crash(*_: object, **__: object) -> None:
    raise Crash


def crash_after_half_the_weights(self: Policy, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    raise Crash


@pytest.mark.parametrize(
    ("owner", "name", "instead"),
    [
        (Policy, "save", crash_after_half_the_weights),
        (torch, "save", crash),
        (atomic_write, "sync_to_disk", crash),
        (os, "rename", crash),
    ],
)
def test_crash_while_saving_keeps_the_previous_checkpoint(
    owner, name, instead, saved, policy, monkeypatch
):
    run = saved.parent.parent
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, instead)
        with pytest.raises(Crash):
            save_checkpoint(run, 8, policy, {"step": 8})
    assert newest_checkpoint(run) == saved
    assert load_trainer_state(saved)["step"] == 7
    load_policy(run)
    save_checkpoint(run, 9, policy, {"step": 9})  # also deletes the files of the failed save
    assert sorted(os.listdir(saved.parent)) == ["step_00000007", "step_00000009"]


def test_crash_while_deleting_keeps_complete_checkpoints(saved, policy, monkeypatch):
    run = saved.parent.parent
    save_checkpoint(run, 8, policy, {"step": 8})
    remove = shutil.rmtree

    def remove_half(folder, *_, **__):
        next(Path(folder).iterdir()).unlink()
        raise Crash

    monkeypatch.setattr(shutil, "rmtree", remove_half)
    with pytest.raises(Crash):
        save_checkpoint(run, 9, policy, {"step": 9})
    checkpoints = sorted(p.name for p in saved.parent.glob("step_*"))
    assert checkpoints == ["step_00000008", "step_00000009"]
    for name in checkpoints:
        load_policy(saved.parent / name)
    monkeypatch.setattr(shutil, "rmtree", remove)
    save_checkpoint(run, 10, policy, {"step": 10})
    assert sorted(os.listdir(saved.parent)) == ["step_00000009", "step_00000010"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", cut),
        ("model.safetensors", lambda path: path.write_bytes(b"")),
        ("model.safetensors", lambda path: path.write_bytes(b"\xff" * 100)),
        ("model.safetensors", Path.unlink),
        ("config.yaml", Path.unlink),
        ("config.yaml", cut),
        ("config.yaml", lambda path: path.write_text("")),
        ("config.yaml", lambda path: path.write_text("a: [1, 2")),
        ("config.yaml", lambda path: path.write_text("- a\n- b")),
        ("config.yaml", lambda path: path.write_text("model: null")),
        ("config.yaml", lambda path: path.write_text("model: ${nowhere}")),
        ("config.yaml", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        ("normalizer.json", lambda path: path.write_text("garbage")),
        ("normalizer.json", cut),
        ("normalizer.json", lambda path: path.write_text("[]")),
        ("normalizer.json", lambda path: path.write_text('{"obs": {"min": [NaN], "max": [1]}}')),
        ("normalizer.json", Path.unlink),
        ("format_version", Path.unlink),
        ("format_version", lambda path: path.write_text("999")),
        ("format_version", lambda path: path.write_bytes(b"\xff\xfe")),
    ],
)
def test_damaged_checkpoint_error_names_the_file(saved, name, damage):
    damage(saved / name)
    with pytest.raises(CheckpointError) as caught:
        load_policy(saved)
    message = str(caught.value)
    assert str(saved) in message and "\n" not in message
    assert name in message or (name == "format_version" and "has format" in message)


def test_normalizer_must_fit_the_policy(saved):
    limits = {key: {"min": [0.0], "max": [1.0]} for key in ("obs", "action")}
    (saved / "normalizer.json").write_text(json.dumps(limits))
    with pytest.raises(CheckpointError, match=r"normalizer\.json"):
        load_policy(saved)


def test_weights_must_fit_the_configuration(saved):
    config = (saved / "config.yaml").read_text()
    assert "width: 16" in config
    (saved / "config.yaml").write_text(config.replace("width: 16", "width: 32"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read") as caught:
        load_policy(saved)
    assert "\n" not in str(caught.value)


def test_policy_of_another_kind_is_refused(saved):
    from ebt_policy.policies.behavior_cloning import BehaviorCloning

    with pytest.raises(CheckpointError, match="holds model=ebt, not BehaviorCloning"):
        BehaviorCloning.from_checkpoint(saved)


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_trainer_state_is_a_one_line_error(saved, damage):
    damage(saved / "trainer_state.pt")
    with pytest.raises(CheckpointError) as caught:
        load_trainer_state(saved)
    message = str(caught.value)
    assert f"{saved}/trainer_state.pt" in message and "\n" not in message
    assert "delete the folder step_00000007" in message


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def pickle_to(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, pickle_to])
def test_code_in_a_trainer_state_is_refused(saved, tmp_path, write):
    mark = tmp_path / "exploded"
    write({"policy": Bomb(mark)}, saved / "trainer_state.pt")
    with pytest.raises(CheckpointError, match=r"trainer_state\.pt") as caught:
        load_trainer_state(saved)
    assert not mark.exists() and "\n" not in str(caught.value)
