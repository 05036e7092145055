"""Preparation of robomimic 0.3.0, which was made for a simulator of 2023."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from ebt_policy.envs.rendering import choose_backend
from ebt_policy.errors import ConfigError

# The extra lacks robomimic itself, which requires a package that does not install everywhere.
INSTALL = "pip install 'ebt_policy[robomimic]' && pip install --no-deps robomimic==0.3.0"


def prepare() -> None:
    """Register the algorithm ``ebt``, and make robomimic work with a current simulator.

    Raises:
        ConfigError: robomimic is not installed.
    """
    if find_spec("robomimic") is None:
        raise ConfigError(f"robomimic is not installed; run {INSTALL}")
    for name, module in (("mujoco_py", _mujoco_py()), ("egl_probe", _egl_probe())):
        if name not in sys.modules and find_spec(name) is None:
            sys.modules[name] = module
    choose_backend()
    from robomimic.envs.env_base import EnvBase  # pyright: ignore
    from robomimic.envs.wrappers import EnvWrapper  # pyright: ignore

    from ebt_policy.integrations.robomimic import algo, algo_config  # noqa: F401

    # run_trained_agent.py checks the type, which is wrong for stacked observations.
    EnvBase.register(EnvWrapper)


def _mujoco_py() -> ModuleType:
    """Return a module ``mujoco_py``, of which robomimic uses one exception only."""
    module: Any = ModuleType("mujoco_py")
    builder: Any = ModuleType("mujoco_py.builder")
    builder.MujocoException = type("MujocoException", (Exception,), {})
    module.builder = builder
    return module


def _egl_probe() -> ModuleType:
    """Return a module ``egl_probe`` that lets the simulator choose the device for rendering."""
    module: Any = ModuleType("egl_probe")
    module.get_available_devices = lambda: []
    return module
