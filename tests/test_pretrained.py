"""Pretrained models that ship with the package."""

from __future__ import annotations

import json

import pytest
import torch

from ebt_policy.errors import ConfigError
from ebt_policy.eval import main
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.models.checkpoint_source import pretrained_names
from ebt_policy.policies import load_policy


def test_every_pretrained_model_loads_without_a_trainer_state():
    assert pretrained_names() == ["push_t"]
    for name in pretrained_names():
        policy = load_policy(f"pretrained:{name}")
        obs = torch.full((1, policy.shape.n_obs_steps, policy.shape.obs_dim), 256.0)
        assert policy.predict_chunk({"obs": obs}).actions.isfinite().all()
        folder, options = parse_checkpoint(f"pretrained:{name}@steps=4")
        assert options == {"steps": 4} and not (folder / "trainer_state.pt").exists()
        assert sum(file.stat().st_size for file in folder.iterdir()) < 2e6


def test_unknown_name_error_lists_the_models():
    with pytest.raises(
        ConfigError, match=r"pretrained:x is unknown; there are pretrained:push_t\."
    ):
        load_policy("pretrained:x")


def test_command_line_evaluates_a_pretrained_model(tmp_path, call_entry):
    code, error = call_entry(
        main, "checkpoint=pretrained:push_t", "episodes=2", "videos=0", "workers=2",
        f"output={tmp_path}/out",
    )  # fmt: skip
    assert (code, error) == (0, "")
    (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())["entries"]
    assert entry["name"] == "push_t" and entry["score"]["mean"] > 0.9
