"""Models by name: building them from configuration and loading them from checkpoints."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ebt_policy.data.normalize import Normalizer
from ebt_policy.energy.objectives import OBJECTIVES, Objective
from ebt_policy.energy.transformer import Size
from ebt_policy.models.policy import Chunk, Policy, Shape
from ebt_policy.models.vision import Vision, VisionEncoder
from ebt_policy.options import ConfigError, options

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ebt_policy.models.image import ImageModel
    from ebt_policy.models.text import TextModel

__all__ = [
    "POLICIES",
    "Chunk",
    "Policy",
    "Shape",
    "build_image_model",
    "build_language_model",
    "build_policy",
    "build_video_model",
    "load_policy",
]

# Sections that a checkpoint keeps.
KEPT = ("task", "size", "model", "objective", "vision", "train", "seed", "demos", "trained")

# Names, not import paths in a configuration: loading a checkpoint never runs code that it names.
POLICIES = {
    "ebt": "ebt_policy.models.action:EnergyPolicy",
    "diffusion": "ebt_policy.baselines.diffusion_policy:DiffusionPolicy",
    "flow_matching": "ebt_policy.baselines.flow_matching:FlowMatchingPolicy",
    "bc": "ebt_policy.baselines.behavior_cloning:BehaviorCloning",
    "ibc": "ebt_policy.baselines.implicit_bc:ImplicitBC",
}


LANGUAGE_MODELS = {
    "ebt": "ebt_policy.models.text:EnergyLanguageModel",
    "refiner": "ebt_policy.baselines.refiner:Refiner",
    "transformer_pp": "ebt_policy.baselines.transformer_pp:TransformerPP",
    "masked_ebt": "ebt_policy.models.masked:MaskedEnergyModel",
    "bert": "ebt_policy.baselines.bert:Bert",
}

IMAGE_MODELS = {
    "ebt": "ebt_policy.models.image:EnergyImageModel",
    "refiner": "ebt_policy.baselines.refiner:ImageRefiner",
    "dit": "ebt_policy.baselines.dit:DiT",
}

VIDEO_MODELS = {
    "ebt": "ebt_policy.models.video:EnergyVideoModel",
    "refiner": "ebt_policy.baselines.refiner:VideoRefiner",
    "transformer_pp": "ebt_policy.baselines.transformer_pp:VideoTransformerPP",
    "autoencoder": "ebt_policy.models.autoencoder:Autoencoder",
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
    build, given = _class_of(config, POLICIES)
    shape = options(Shape, config["shape"], "shape")
    vision = None
    if shape.cameras:
        how = options(Vision, config.get("vision") or {}, "vision")
        vision = VisionEncoder(shape.cameras, how)
    build = partial(build, shape, normalizer, _size(config), vision=vision)
    if config["model"]["name"] == "ebt":
        build = partial(build, objective=build_objective(config["objective"]))
    return _built(build, given, config)


def build_language_model(config: dict[str, Any], tokenizer: Tokenizer) -> TextModel:
    """Build an untrained model of text.

    Args:
        config: sections ``task`` with its ``context``, ``size`` (see `Size`), ``model`` with its
            ``name``, and ``objective`` for those that have guesses.
        tokenizer: of its text.

    Raises:
        ConfigError: for an unknown name or option.
    """
    build, given = _class_of(config, LANGUAGE_MODELS)
    build = partial(build, tokenizer, config["task"]["context"], _size(config))
    if config.get("objective"):
        build = partial(build, objective=build_objective(config["objective"]))
    return _built(build, given, config)


def build_image_model(config: dict[str, Any]) -> ImageModel:
    """Build an untrained model of images.

    Args:
        config: sections ``shape`` (see `ImageShape`), ``size`` (see `Size`), ``model`` with its
            ``name``, and ``objective`` for those that descend.

    Raises:
        ConfigError: for an unknown name or option.
    """
    from ebt_policy.models.image import ImageShape  # asks for diffusers, which takes a while

    build, given = _class_of(config, IMAGE_MODELS)
    build = partial(build, options(ImageShape, config["shape"], "task"), _size(config))
    if config.get("objective"):
        build = partial(build, objective=build_objective(config["objective"]))
    return _built(build, given, config)


def build_video_model(config: dict[str, Any]) -> Any:
    """Build an untrained `VideoModel`, or an `Autoencoder` of frames.

    Args:
        config: sections ``model`` with its ``name``, and for all but an autoencoder ``task`` with
            its ``context``, ``size`` (see `Size`), ``features``, their number, and ``objective``
            for those that have guesses.

    Raises:
        ConfigError: for an unknown name or option.
    """
    build, given = _class_of(config, VIDEO_MODELS)
    if config["model"]["name"] != "autoencoder":
        build = partial(build, config["features"], config["task"]["context"], _size(config))
    if config.get("objective"):
        build = partial(build, objective=build_objective(config["objective"]))
    return _built(build, given, config)


def _class_of(config: dict[str, Any], known: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """The class that the section ``model`` names, and the section's other options."""
    given = dict(config["model"])
    name = given.pop("name")
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"model={name} is unknown; there are {', '.join(known)}.")
    module, cls = known[name].split(":")
    return getattr(import_module(module), cls), given


def _size(config: dict[str, Any]) -> Size:
    return options(Size, {k: v for k, v in config["size"].items() if k != "name"}, "size")


def _built(build: Any, given: dict[str, Any], config: dict[str, Any]) -> Any:
    model = options(build, given, "model")
    model.config = {key: config[key] for key in KEPT if key in config}
    return model


def build_objective(config: dict[str, Any]) -> Objective:
    """Build the training objective of an energy policy from its ``name`` and options."""
    arguments = dict(config)
    name = arguments.pop("name")
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise ConfigError(f"objective={name} is unknown; there are {', '.join(OBJECTIVES)}.")
    return options(OBJECTIVES[name], arguments, f"objective={name}")


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """Load any policy from a checkpoint or run folder (`Policy.from_checkpoint`)."""
    return Policy.from_checkpoint(path, device)
