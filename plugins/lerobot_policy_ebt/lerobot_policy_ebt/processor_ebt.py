"""Processing of observations and actions: batches and devices; `EBTPolicy` normalises itself."""

from typing import Any

from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_pre_post_processors,
)
from torch import Tensor

from .configuration_ebt import EBTConfig


def make_ebt_pre_post_processors(
    config: EBTConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Return the pre-processor and the post-processor of a policy, see LeRobot."""
    return make_default_pre_post_processors(config, dataset_stats)
