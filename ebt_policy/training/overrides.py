"""Changes of a configuration that follow from the overrides of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ebt_policy.errors import ConfigError
from ebt_policy.models.energy_model import EnergyModel
from ebt_policy.training.task import TASKS

NONE = ("", "null", "~")  # values that hydra reads as None


def choose_budget(train: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the section ``train`` with only the budget that the command line sets.

    ``train.steps=N`` alone unsets the default of ``train.minutes``, and the other way round.
    """
    values = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    chosen = {name for name in ("steps", "minutes") if values.get(f"train.{name}", "") not in NONE}
    if len(chosen) != 1:
        return train
    return train | {name: None for name in {"steps", "minutes"} - chosen}


def drop_unused_sections(config: dict[Any, Any], overridden: Sequence[str] = ()) -> dict[str, Any]:
    """Return a composed configuration without the sections that its model and task do not use.

    Args:
        config: composed configuration.
        overridden: overrides of the command line.

    Raises:
        ConfigError: if the command line sets an option of such a section.
    """
    model = TASKS.get(config["domain"]).models.get(config["model"]["name"])
    unused = []
    if not issubclass(model, EnergyModel):
        unused.append(("objective", "models that descend an energy"))
    if "vision" in config and not config["task"].get("cameras"):
        unused.append(("vision", "tasks with cameras"))
    for section, owner in unused:
        if any(override.startswith(section) for override in overridden):
            raise ConfigError(f"{section}=... is for {owner}; leave it out.")
    return {str(k): None if k in dict(unused) else v for k, v in config.items()}
