"""Helpers that read, compare, copy and interrupt training runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ebt_policy.training.checkpoint import load_trainer_state, newest_checkpoint
from ebt_policy.training.trainer import Trainer

S2 = ("objective=s2", "objective.replay=12")


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [values["loss"] for values in logged(run) if "loss" in values]


def assert_identical(a: Any, b: Any, path: str = "state") -> None:
    """Assert that nested values are equal to the last bit, except wall-clock times."""
    assert type(a) is type(b), path
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"seconds"}:
            assert_identical(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def assert_same_end(run: Path, other: Path) -> None:
    """Assert that both runs ended at one step with equal weights, averages, optimizer and log."""
    end, other_end = newest_checkpoint(run), newest_checkpoint(other)
    assert end is not None and other_end is not None and end.name == other_end.name
    weights = [(folder / "model.safetensors").read_bytes() for folder in (end, other_end)]
    assert weights[0] == weights[1]
    assert_identical(load_trainer_state(end), load_trainer_state(other_end))
    timing = ("seconds", "steps_per_second")
    logs = [
        [{k: v for k, v in x.items() if k not in timing} for x in logged(r)] for r in (run, other)
    ]
    assert logs[0] == logs[1]


def copy_run(run: Path, to: Path, key: str, value: Any) -> None:
    """Copy a run as if it had been trained with another value of an option."""
    shutil.copytree(run, to)
    set_stored_option(to, key, value)


def set_stored_option(run: Path, key: str, value: Any) -> None:
    """Change an option of a run as if it had been trained with it."""
    for file in run.rglob("checkpoints/*/config.yaml"):
        stored = OmegaConf.load(file)
        OmegaConf.update(stored, key, value)
        OmegaConf.save(stored, file)


class Interrupted(BaseException):
    """A stand-in for a kill of the training."""


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt the training right after this step, without saving."""
    original = Trainer.train_step

    def train_step(self: Trainer) -> dict[str, Tensor]:
        if self.progress.step == step:
            raise Interrupted
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", train_step)
