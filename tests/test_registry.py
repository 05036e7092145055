"""Registries: names of this package, of --module on the command line, and of plug-ins."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, compose_config

from ebt_policy.errors import ConfigError
from ebt_policy.policies.registry import POLICIES
from ebt_policy.registry import Registry
from ebt_policy.train import main, train

POLICY = """
from ebt_policy.policies.behavior_cloning import BehaviorCloning
from ebt_policy.policies.registry import POLICIES

@POLICIES.register("mine")
class MyPolicy(BehaviorCloning):
    name = "mine"
"""
PLUGIN = POLICY.replace('@POLICIES.register("mine")\n', "")
LOAD = "import sys; from ebt_policy.policies import load_policy; load_policy(sys.argv[1])"


def install_plugin(folder: Path, name: str, entry: str, group: str) -> None:
    """Write the metadata of an installed distribution with an entry point into a folder."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Add a folder of installed packages to the import path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    return folder


@pytest.fixture
def colors():
    registry: Registry[str] = Registry("color", "ebt_policy.test_colors")
    registry.register("red")("a red thing")
    registry.register("green")("a green thing")
    return registry


def test_registered_names_are_found(colors):
    assert colors.get("red") == "a red thing" and list(colors) == ["red", "green"]
    assert "red" in colors and "blue" not in colors
    with pytest.raises(ValueError, match="color=red is registered twice"):
        colors.register("red")("another")
    message = r"^color=gren is unknown; there are red, green\. Did you mean green\?$"
    with pytest.raises(ConfigError, match=message):
        colors.get("gren")
    for odd in (None, 3, ["red"]):
        with pytest.raises(ConfigError, match="is unknown"):
            colors.get(odd)


def test_declared_class_is_imported_on_access(colors, monkeypatch):
    monkeypatch.delitem(sys.modules, "ebt_policy.energy.deadline", raising=False)
    colors.declare("late", "ebt_policy.energy.deadline:Deadline")
    assert "late" in colors and "ebt_policy.energy.deadline" not in sys.modules
    assert colors.get("late").__name__ == "Deadline"


def test_installed_plugin_adds_a_name(colors, site):
    (site / "blue_things.py").write_text("BLUE = 'a blue thing'\n")
    install_plugin(site, "blue-plugin", "blue = blue_things:BLUE", "ebt_policy.test_colors")
    assert list(colors) == ["red", "green", "blue"] and "blue" in colors
    assert "blue_things" not in sys.modules
    assert colors.get("blue") == "a blue thing"


def test_package_names_take_precedence_over_plugins(colors, site):
    install_plugin(site, "red-plugin", "red = nowhere:RED", "ebt_policy.test_colors")
    assert colors.get("red") == "a red thing"


def test_broken_plugin_is_named(colors, site):
    install_plugin(site, "blue-plugin", "blue = nowhere_at_all:BLUE", "ebt_policy.test_colors")
    with pytest.raises(ConfigError, match="color=blue of the plug-in blue-plugin cannot be impor"):
        colors.get("blue")


def test_two_plugins_of_one_name_are_refused(colors, site):
    install_plugin(site, "one-plugin", "blue = one:BLUE", "ebt_policy.test_colors")
    install_plugin(site, "two-plugin", "blue = two:BLUE", "ebt_policy.test_colors")
    with pytest.raises(ConfigError, match="several installed plug-ins, one-plugin and two-plugin"):
        colors.get("blue")


def test_checkpoint_error_names_the_missing_module(
    demonstrations, tmp_path, monkeypatch, call_entry
):
    (tmp_path / "my_policies.py").write_text(POLICY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(POLICIES, "_items", dict(POLICIES._items))
    monkeypatch.delitem(sys.modules, "my_policies", raising=False)
    arguments = (*TINY, f"task.path={demonstrations}", "run_dir=run", "train.steps=1", "model=bc")
    code, error = call_entry(main, *arguments, "model.name=mine")
    assert code == 2 and "model=mine is unknown; there are " in error
    assert call_entry(main, "--module", "my_policies", *arguments, "model.name=mine") == (0, "")
    # Another process does not import the module only because a checkpoint names it.
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "run"], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": ":".join([str(Path(__file__).parents[1]), str(tmp_path)])},
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "belongs to the module my_policies, which is not imported; add --module" in done.stderr


def test_policy_of_a_plugin_is_trained_and_loaded(demonstrations, tmp_path, site, monkeypatch):
    (site / "plugin_policies.py").write_text(PLUGIN)
    install_plugin(site, "my-plugin", "plugged = plugin_policies:MyPolicy", "ebt_policy.policies")
    monkeypatch.setattr(POLICIES, "_items", dict(POLICIES._items))
    config = compose_config(*TINY, "model=bc", "train.steps=1", f"task.path={demonstrations}")
    config["model"] = {**config["model"], "name": "plugged"}
    config["run_dir"] = str(tmp_path / "run")
    from ebt_policy.policies import load_policy

    policy = load_policy(train(config), torch.device("cpu"))
    assert type(policy).__name__ == "MyPolicy" and policy.config["needs"] == "plugin_policies"
