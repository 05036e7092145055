"""Policies by name: building them from configuration and loading them from checkpoints."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ebt_policy.data.normalize import Normalizer
from ebt_policy.energy.objectives import OBJECTIVES, Objective
from ebt_policy.energy.transformer import Size
from ebt_policy.models.policy import Chunk, Policy, Shape
from ebt_policy.models.vision import Vision, VisionEncoder
from ebt_policy.options import ConfigError, options

__all__ = [
    "POLICIES",
    "Chunk",
    "Policy",
    "Shape",
    "build_policy",
    "load_policy",
]

# Names, not import paths in a configuration: loading a checkpoint never runs code that it names.
POLICIES = {
    "ebt": "ebt_policy.models.action:EnergyPolicy",
    "diffusion": "ebt_policy.baselines.diffusion_policy:DiffusionPolicy",
    "flow_matching": "ebt_policy.baselines.flow_matching:FlowMatchingPolicy",
    "bc": "ebt_policy.baselines.behavior_cloning:BehaviorCloning",
    "ibc": "ebt_policy.baselines.implicit_bc:ImplicitBC",
}


def build_policy(config: dict[str, Any], normalizer: Normalizer) -> Policy:
    """Build an untrained policy.

    Args:
        config: sections ``shape`` (see `Shape`), ``size`` (see `Size`), ``model`` with its
            ``name``, ``objective`` for energy policies, and ``vision`` (see `Vision`) for those
            that see.
        normalizer: fitted on the training data.

    Raises:
        ConfigError: for an unknown name or option.
    """
    model = dict(config["model"])
    name = model.pop("name")
    if name not in POLICIES:
        raise ConfigError(f"model={name} is unknown; there are {', '.join(POLICIES)}.")
    module, cls = POLICIES[name].split(":")
    shape = options(Shape, config["shape"], "shape")
    size = options(Size, {k: v for k, v in config["size"].items() if k != "name"}, "size")
    vision = None
    if shape.cameras:
        how = options(Vision, config.get("vision") or {}, "vision")
        vision = VisionEncoder(shape.cameras, how)
    build = partial(getattr(import_module(module), cls), shape, normalizer, size, vision=vision)
    if name == "ebt":
        build = partial(build, objective=build_objective(config["objective"]))
    policy = options(build, model, "model")
    kept = ("task", "size", "model", "objective", "vision", "train", "seed", "demos", "trained")
    policy.config = {key: config[key] for key in kept if key in config}
    return policy


def build_objective(config: dict[str, Any]) -> Objective:
    """Build the training objective of an energy policy from its ``name`` and options."""
    arguments = dict(config)
    name = arguments.pop("name")
    if name not in OBJECTIVES:
        raise ConfigError(f"objective={name} is unknown; there are {', '.join(OBJECTIVES)}.")
    return options(OBJECTIVES[name], arguments, f"objective={name}")


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """Load any policy from a checkpoint or run folder (`Policy.from_checkpoint`)."""
    return Policy.from_checkpoint(path, device)
