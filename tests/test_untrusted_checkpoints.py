"""Untrusted checkpoints and data: no code runs, whatever names they contain."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from conftest import TINY, compose_config
from omegaconf import OmegaConf
from PIL import Image

from ebt_policy import plugins as modules
from ebt_policy.data.episode_store import read_episodes
from ebt_policy.data.episodes import EpisodeError
from ebt_policy.envs.mp4_writer import video_writer
from ebt_policy.errors import ConfigError
from ebt_policy.eval import main as eval_main
from ebt_policy.image.model import ImageModel
from ebt_policy.language.model import LanguageModel
from ebt_policy.models.base import checkpoint_folder
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.train import train
from ebt_policy.video.metrics import load_eval_set as load_video_eval_set
from ebt_policy.video.model import VideoModel

CANARY = "canary_payload"
FORMS = (CANARY, f"{CANARY}:Thing-v0", f"{CANARY}.Thing", f"./{CANARY}.py")
PAYLOAD = """
from pathlib import Path
Path(__file__).with_suffix(".executed").touch()
import gymnasium
class Thing(gymnasium.Env): ...
gymnasium.register("Thing-v0", Thing)
"""
FAST = (
    "train.steps=1", "train.batch_size=4", "train.warmup_steps=1", "size.width=16", "size.heads=2",
    "size.layers=1", "device=cpu", "train.minutes=null", "train.compile=false",
    "train.eval_every=0",
)  # fmt: skip


def load_env(run: Path) -> None:
    """Load a policy and create the environment that it was trained for."""
    (entry,) = load_policy_entries([str(run)], torch.device("cpu"))
    entry.env_spec.make().close()


def load_text(run: Path) -> None:
    LanguageModel.from_checkpoint(run)


def load_image(run: Path) -> None:
    ImageModel.from_checkpoint(run)


def load_video(run: Path) -> None:
    """Load a video model and the features that it was trained on."""
    load_video_eval_set(VideoModel.from_checkpoint(run), None, torch.device("cpu"))


def train_policy(tmp_path: Path, demonstrations: Path, *overrides: str) -> Path:
    return train(
        compose_config(
            *TINY, *FAST, f"task.path={demonstrations}", f"run_dir={tmp_path}/run", *overrides
        )
    )


def train_text(tmp_path: Path, _: Path) -> Path:
    (tmp_path / "mine.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    paths = (f"task.path={tmp_path}/mine.txt", f"run_dir={tmp_path}/run")
    overrides = (*FAST, "task.context=8", "task.tokenizer=char", "evaluation.final=false")
    return train(compose_config(*overrides, *paths, "task=text"))


def train_image(tmp_path: Path, _: Path) -> Path:
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    overrides = (*FAST, "task.side=8", "evaluation.final=false", "model=dit")
    paths = (f"task.path={tmp_path}", f"run_dir={tmp_path}/run")
    return train(compose_config(*overrides, *paths, "task=image"))


def train_video(tmp_path: Path, _: Path) -> Path:
    for i in range(12):
        with video_writer(tmp_path / f"{i}.mp4", fps=10) as add:
            for t in range(8):
                add(np.full((32, 48, 3), 20 * i + t, np.uint8))
    overrides = (
        *FAST, "evaluation.final=false", "task.height=16", "task.width=24", "task.context=4",
        f"task.path={tmp_path}",
    )  # fmt: skip
    features = f"{tmp_path}/features"
    autoencoder = ("model=autoencoder", "model.channels=[8,8]", f"run_dir={features}")
    train(compose_config(*overrides, *autoencoder, "task=video"))
    run = (f"task.features={features}", f"run_dir={tmp_path}/run")
    return train(compose_config(*overrides, *run, "task=video"))


KINDS: dict[str, tuple[Any, Any]] = {
    "energy policy": (train_policy, load_env),
    "diffusion policy": (lambda *args: train_policy(*args, "model=diffusion"), load_env),
    "text": (train_text, load_text),
    "image": (train_image, load_image),
    "video": (train_video, load_video),
}


def strings(section: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all strings and null options in a nested configuration."""
    if isinstance(section, dict | list):
        items = section.items() if isinstance(section, dict) else enumerate(section)
        for key, value in items:
            yield from strings(value, (*path, key))
    elif isinstance(section, str) or section is None:
        yield path


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_string_of_a_checkpoint_is_imported(kind, demonstrations, tmp_path, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    make, use = KINDS[kind]
    run = make(tmp_path, demonstrations)
    use(run)  # the unchanged checkpoint works
    monkeypatch.chdir(checkpoint_folder(run))
    Path(f"{CANARY}.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend("")
    # No name is looked up on a network.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = checkpoint_folder(run) / "config.yaml"
    config: Any = OmegaConf.to_container(OmegaConf.load(file))
    paths = list(strings(config))
    assert ("model", "name") in paths and ("task", "name") in paths
    for path in paths:
        section = config
        for key in path[:-1]:
            section = section[key]
        original = section[path[-1]]
        for name in FORMS:
            section[path[-1]] = name
            OmegaConf.save(OmegaConf.create(config), file)
            try:
                use(run)
            except (ValueError, OSError) as error:  # reported in one line by an entry
                assert str(error)
            option = ".".join(map(str, path))
            assert not Path(f"{CANARY}.executed").exists(), f"{option} was imported"
        section[path[-1]] = original
    assert CANARY not in sys.modules


@pytest.mark.slow
def test_module_option_imports_user_code(demonstrations, tmp_path, monkeypatch, call_entry):
    run = train_policy(tmp_path, demonstrations)
    file = checkpoint_folder(run) / "config.yaml"
    text = file.read_text().replace("ebt_policy/PushT-v0", "my_envs:Mine-v0")
    file.write_text(text)
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'ebt_policy.envs.push_t_env:PushTEnv')\n"
    )  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    # Rollout processes import the module, too.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setattr(modules, "_imported", set())
    monkeypatch.chdir(tmp_path)
    arguments = [f"checkpoint={run}", "episodes=1", "videos=0", "workers=1", "output=results"]
    code, error = call_entry(eval_main, *arguments)
    assert code == 2 and "to run its code, add --module my_envs to the command" in error
    assert "my_envs" not in sys.modules
    assert call_entry(eval_main, "--module", "my_envs", *arguments) == (0, "")
    code, error = call_entry(eval_main, "--module=none_such", *arguments)
    assert code == 2 and "--module none_such cannot be imported" in error


class Canary:
    """An object that creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    "metadata",
    [
        {"filters": [{"id": "pickle"}]},
        {"filters": None, "compressor": {"id": "pickle"}},
        {"dtype": "|O", "fill_value": "", "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]},
    ],
)
def test_episode_stores_are_not_unpickled(metadata, tmp_path):
    store = tmp_path / "store"
    root = zarr.open_group(str(store), mode="w", zarr_format=2)
    rows = {"data/state": np.zeros((10, 5), "f4"), "data/action": np.ones((10, 2), "f4")}
    for key, values in (rows | {"meta/episode_ends": np.array([10])}).items():
        array = root.create_array(
            key, shape=values.shape, chunks=values.shape, dtype=values.dtype, compressors=None
        )
        array[:] = values
    assert len(read_episodes(store)) == 1
    described = store / "data" / "action" / ".zarray"
    described.write_text(json.dumps(json.loads(described.read_text()) | metadata))
    (store / "data" / "action" / "0.0").write_bytes(pickle.dumps(Canary(tmp_path / "executed")))
    with pytest.raises(EpisodeError, match="data/action"):
        read_episodes(store)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["", "-m"])
def test_module_option_needs_a_name(name):
    with pytest.raises(ConfigError, match="needs the name of a Python module"):
        modules.take_modules(["--module", name])


def test_module_options_are_removed_from_the_arguments():
    rest = modules.take_modules(["task=push_t", "--module", "json", "seed=1", "--module=math"])
    assert rest == ["task=push_t", "seed=1"]
    assert modules.is_user_module("json") and modules.is_user_module("math")
