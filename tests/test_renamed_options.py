"""Renamed options: errors that name the new option, and migration of checkpoints."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import compose_config
from golden_records import CHECKPOINTS, RUNS
from omegaconf import OmegaConf

from ebt_policy.errors import ConfigError
from ebt_policy.eval import main as eval_main
from ebt_policy.models.base import CheckpointError, Domain, stored_domain
from ebt_policy.models.migration import migrate_config
from ebt_policy.policies import load_policy
from ebt_policy.renamed_options import (
    RENAMED_OPTIONS,
    check_renamed_argument,
    with_new_names,
)
from ebt_policy.train import main as train_main


def test_old_option_error_names_the_new_option(call_entry, tiny_arguments):
    code, error = call_entry(train_main, *tiny_arguments("run", "train.rollout_every=0"))
    assert code == 2
    assert error == "error: train.rollout_every was renamed: use train.eval_every=0\n"
    code, error = call_entry(train_main, "task=text", "objective=corrupted")
    assert code == 2 and error == (
        "error: objective=corrupted was renamed: use objective=s1_corrupted\n"
    )


@pytest.mark.parametrize(("section", "old"), RENAMED_OPTIONS)
def test_every_old_option_is_refused_as_an_override(section, old):
    new = RENAMED_OPTIONS[section, old]
    old_option, new_option = (".".join(filter(None, (section, name))) for name in (old, new))
    for prefix in ("", "+", "++", "~"):
        with pytest.raises(ConfigError, match=rf"was renamed: use {re.escape(new_option)}=1$"):
            check_renamed_argument(f"{prefix}{old_option}=1")
    check_renamed_argument(f"{new_option}=1")
    check_renamed_argument(f"elsewhere.{old}=1")


def test_old_inference_option_error_names_the_new_option(call_entry):
    policy = CHECKPOINTS / "robot" / "ebt_flow"
    code, error = call_entry(eval_main, f"checkpoint={policy}@candidates=4", "episodes=1")
    assert code == 2 and "candidates was renamed: use num_candidates." in error


def test_migration_leaves_the_stored_configuration_unchanged():
    stored = {"train": {"rollout_every": 5, "lr": 0.1}, "seed": 0}
    assert with_new_names(stored) == {"train": {"eval_every": 5, "lr": 0.1}, "seed": 0}
    assert stored == {"train": {"rollout_every": 5, "lr": 0.1}, "seed": 0}


@pytest.mark.parametrize("config", [{}, {"train": None}, {"train": [1]}, {"task": {"env": 3}}])
def test_malformed_configurations_are_passed_through(config):
    assert {**migrate_config(config), **config}.items() >= config.items()


@pytest.mark.parametrize(
    "overrides",
    [(), ("objective=s1",), ("task=text",), ("task=image", "model=dit"), ("task=video",)],
)
def test_current_configurations_are_unchanged(overrides):
    config = compose_config(*overrides)
    assert migrate_config(config) == config


STORED = sorted(str(file.parent.relative_to(CHECKPOINTS)) for file in CHECKPOINTS.rglob("*.yaml"))


@pytest.mark.parametrize("name", STORED)
def test_checkpoints_of_the_first_version_have_a_domain(name):
    folder = name.partition("/")[0]
    expected = {"robot": Domain.POLICY, "autoencoder": Domain.VIDEO}.get(folder) or Domain(folder)
    assert (CHECKPOINTS / name / "format_version").read_text().strip() == "1"
    assert stored_domain(CHECKPOINTS / name) is expected


def test_environments_of_the_first_version_are_renamed():
    config: Any = OmegaConf.to_container(OmegaConf.load(RUNS / "robot" / "config.yaml"))
    assert config["task"]["env"]["env_id"] == "envs:ebt_policy/PushT-v0"
    assert migrate_config(config)["task"]["env"]["env_id"] == "ebt_policy/PushT-v0"


def test_checkpoint_of_a_newer_version_is_refused(tmp_path: Path):
    folder = shutil.copytree(CHECKPOINTS / "robot" / "bc", tmp_path / "bc")
    (folder / "format_version").write_text("3")
    with pytest.raises(CheckpointError, match=r"has format 3, .* up to 2; update the package\.$"):
        load_policy(folder)


def test_a_checkpoint_of_another_domain_is_refused():
    with pytest.raises(CheckpointError, match=r"bert holds a text model, not a policy\.$"):
        load_policy(CHECKPOINTS / "text" / "bert")
