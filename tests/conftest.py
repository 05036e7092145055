"""Shared fixtures: synthetic demonstrations, tiny configurations and quick trainings."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hydra import compose, initialize_config_module
from hypothesis import Phase, settings
from omegaconf import OmegaConf
from tiny_language_models import TEXT

from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.envs.mp4_writer import video_writer
from ebt_policy.train import train
from ebt_policy.training.compilation import can_compile
from ebt_policy.training.config import TrainConfig
from ebt_policy.training.overrides import drop_unused_sections
from ebt_policy.training.task import TASKS
from ebt_policy.training.trainer import Trainer

# The tensors are tiny: a second thread costs more time than it saves, also in subprocesses.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# On a busy machine, a first call with its imports takes longer than the default deadline.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
# Any failing example kills a mutant, so examples are reproducible and not minimised.
settings.register_profile(
    "mutation", deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
)

TINY = (
    "size.width=16",
    "size.heads=2",
    "size.layers=1",
    "task.validation_episodes=1",
    "task.env.max_steps=20",
    "device=cpu",
    "train.steps=10",
    "train.minutes=null",
    "train.batch_size=8",
    "train.warmup_steps=3",
    "train.compile=false",
    "train.eval_every=0",
    "train.log_every=1",
    "evaluation.episodes=0",
    "evaluation.workers=2",
)

TINY_TEXT = (
    "size.width=16", "size.heads=2", "size.layers=2", "task.tokenizer=char", "task.context=8",
    "device=cpu", "train.steps=12", "train.minutes=null", "train.batch_size=4",
    "train.warmup_steps=3", "train.compile=false", "train.checkpoint_every=6", "train.log_every=2",
    "train.eval_every=4", "evaluation.windows=8",
)  # fmt: skip


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_module("ebt_policy.configs", version_base="1.3"):
        config = OmegaConf.to_container(compose("train", list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return drop_unused_sections(config)


def compose_config(*overrides: str) -> dict[str, Any]:
    """Return the resolved content of configs/train.yaml with overrides."""
    return copy.deepcopy(_composed(overrides))


def assert_one_line_error(error: str) -> None:
    """Assert that a command's stderr is a single error line."""
    assert error.startswith("error: ") and error.endswith("\n")
    assert error.count("\n") == 1 and "Traceback" not in error


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Reset Accelerate after each test: it keeps device and precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory) -> Path:
    """Write an episode store like Push-T's: state (N, 5), action (N, 2), six short episodes."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 30, 6)
    states, actions = [], []
    for length in lengths:
        agent = rng.uniform(150, 350, 2) + np.cumsum(rng.normal(0, 8, (length + 1, 2)), axis=0)
        block = rng.uniform(200, 300, 2) + np.cumsum(rng.normal(0, 2, (length, 2)), axis=0)
        angle = rng.uniform(0, 6) + np.cumsum(rng.normal(0, 0.05, (length, 1)), axis=0)
        states.append(np.concatenate([agent[:-1], block, angle], axis=1))
        actions.append(agent[1:])
    arrays = {
        "state": np.concatenate(states).astype(np.float32),
        "action": np.concatenate(actions).clip(0, 512).astype(np.float32),
    }
    path = tmp_path_factory.mktemp("data") / "demonstrations"
    write_episodes(path, Episodes(arrays, np.cumsum(lengths)))
    return path


@pytest.fixture
def tiny(demonstrations, tmp_path):
    """Return a function that configures a sub-second training: ``tiny("name", *overrides)``."""

    def make(name: str, *overrides: str) -> dict[str, Any]:
        config = compose_config(*TINY, *overrides)
        config["task"]["path"] = str(demonstrations)
        config["run_dir"] = str(tmp_path / name)
        return config

    return make


@pytest.fixture
def tiny_arguments(demonstrations, tmp_path):
    """Return a function like `tiny` that returns command-line arguments."""

    def make(name: str, *overrides: str) -> list[str]:
        path, run_dir = f"task.path={demonstrations}", f"run_dir={tmp_path / name}"
        return [*TINY, path, run_dir, *overrides]

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, demonstrations) -> str:
    """Train for ten updates and return the run folder."""
    config = compose_config(*TINY)
    config["task"]["path"] = str(demonstrations)
    config["run_dir"] = str(tmp_path_factory.mktemp("runs") / "tiny-seed0")
    train(config)
    return config["run_dir"]


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skip a test if torch.compile lacks a C++ compiler or Python's headers."""
    if not can_compile(torch.device("cpu")):
        pytest.skip("torch.compile does not work here")


@pytest.fixture
def call_entry(monkeypatch, capfd):
    """Return a function that runs a command-line entry here and returns (exit code, stderr)."""

    def call(main: Callable[[], None], *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["entry", *arguments])
        capfd.readouterr()
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), capfd.readouterr().err
        return 0, capfd.readouterr().err

    return call


@pytest.fixture
def make_trainer(tiny, tmp_path):
    """Return a function that builds a Trainer without running it."""

    def make(*overrides: str) -> Trainer:
        config = tiny("run", *overrides)
        accelerator, train_config = Accelerator(cpu=True), TrainConfig(**config["train"])
        task = TASKS.get("policy")(config, train_config)
        setup = task.build(task.load_data(), accelerator.device)
        return Trainer(
            setup.model, setup.train_data, train_config, tmp_path / "run",
            seed=config["seed"], accelerator=accelerator,
        )  # fmt: skip

    return make


@pytest.fixture
def text_file(tmp_path, monkeypatch) -> Path:
    """Write a text file and use an empty cache folder; return the file."""
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "mine.txt"
    file.write_text(TEXT, "utf-8")
    return file


@pytest.fixture
def tiny_text(text_file, tmp_path):
    """Return a function that configures a quick training on `text_file`."""

    def configure(name: str, *overrides: str):
        paths = (f"task.path={text_file}", f"run_dir={tmp_path / name}")
        return compose_config(*TINY_TEXT, *paths, *overrides, "task=text")

    return configure


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    """Write twelve videos of 16 frames: a bright square moves right, each at another height."""
    folder = tmp_path_factory.mktemp("video_folder")
    for i in range(12):
        with video_writer(folder / f"{i:02}.mp4", fps=10) as add:
            for t in range(16):
                frame = np.full((32, 48, 3), 40, np.uint8)
                frame[i : i + 12, 2 * t : 2 * t + 12] = 220
                add(frame)
    return folder


@pytest.fixture
def policy_entries():
    """Return two evaluation entries with their episodes."""
    from policy_results import make_entry  # imports matplotlib, which most tests do not need

    return [make_entry("energy", [1.0, 0.5, 0.8]), make_entry("diffusion", [0.7, 0.5, 1.0])]


def wait_for(happened: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something has happened; long, because a busy machine is slow."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)
