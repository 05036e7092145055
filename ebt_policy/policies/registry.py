"""The registry of policies by their names in configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ebt_policy.config import options
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.models.energy_model import EnergyModel
from ebt_policy.models.factory import build_model, build_size
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.vision import VisionConfig, VisionEncoder
from ebt_policy.registry import Registry

if TYPE_CHECKING:
    from ebt_policy.policies.base import Policy

POLICIES: Registry[type[Policy]] = Registry("model", "ebt_policy.policies")


def build_policy(config: dict[str, Any], normalizer: Normalizer) -> Policy:
    """Build an untrained policy.

    Args:
        config: sections ``shape`` (see `PolicyShape`), ``size`` (see `TransformerConfig`),
            ``model`` with its ``name``, ``objective`` for energy policies, and ``vision`` (see
            `VisionConfig`) for policies with cameras.
        normalizer: fitted on the training data.

    Raises:
        ConfigError: the configuration has an unknown name or option.
    """
    shape = options(PolicyShape, config["shape"], "shape")
    vision = None
    if shape.cameras:
        vision_config = options(VisionConfig, config.get("vision") or {}, "vision")
        vision = VisionEncoder(shape.cameras, vision_config)
    if not issubclass(POLICIES.get(config["model"]["name"], config.get("needs")), EnergyModel):
        config = {**config, "objective": None}
    return build_model(POLICIES, config, shape, normalizer, build_size(config), vision=vision)
