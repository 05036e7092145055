"""Building of models and objectives from configuration, with checked options."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ebt_policy.config import check_options, options
from ebt_policy.energy.candidate_space import EUCLIDEAN
from ebt_policy.energy.objectives import ObjectiveFactory
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.models.energy_model import OBJECTIVES
from ebt_policy.registry import Registry

# Configuration sections that a checkpoint stores.
CHECKPOINT_SECTIONS = (
    "task",
    "size",
    "model",
    "objective",
    "vision",
    "train",
    "seed",
    "demos",
    "trained",
    "needs",
)


def build_model(
    registry: Registry[Any], config: dict[str, Any], *arguments: Any, **keywords: Any
) -> Any:
    """Build an untrained model.

    Args:
        registry: registry of the domain's models.
        config: sections ``model`` with its ``name``, and ``objective`` for models that descend an
            energy.
        arguments, keywords: arguments of the class besides the options of the section ``model``.

    Raises:
        ConfigError: if a name or an option is unknown.
    """
    model_options = dict(config["model"])
    cls = registry.get(model_options.pop("name"), config.get("needs"))
    classes = [cls]
    if config.get("objective"):
        keywords["objective"] = build_objective(config["objective"], config.get("needs"))
        classes.append(OBJECTIVES.get(config["objective"]["name"]))
    model = options(partial(cls, *arguments, **keywords), model_options, "model")
    model.config = {key: config[key] for key in CHECKPOINT_SECTIONS if key in config}
    if external := _external_module(classes):
        model.config["needs"] = external
    return model


def _external_module(classes: Sequence[type]) -> str | None:
    """Return the module of the first class from outside this package, or None."""
    modules = [cls.__module__ for cls in classes]
    return next((m for m in modules if m.partition(".")[0] != "ebt_policy"), None)


def build_size(config: dict[str, Any]) -> TransformerConfig:
    """Return the size of the transformer from the section ``size``."""
    return options(
        TransformerConfig, {k: v for k, v in config["size"].items() if k != "name"}, "size"
    )


def build_objective(config: dict[str, Any], needs: str | None = None) -> ObjectiveFactory:
    """Return a factory of the training objective with this ``name`` and these options.

    The model calls the factory with the space of its candidates. This call checks the values.

    Args:
        config: section ``objective``: ``name`` and options.
        needs: module that registers the objective, if a checkpoint names one.

    Raises:
        ConfigError: if the name is unknown, or an option is unknown or of another type.
    """
    arguments = dict(config)
    name = arguments.pop("name")
    cls = OBJECTIVES.get(name, needs)
    check_options(partial(cls, EUCLIDEAN), arguments, f"objective={name}")
    return partial(cls, **arguments)
