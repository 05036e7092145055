"""What the overrides of the command line imply for the rest of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ebt_policy.errors import ConfigError
from ebt_policy.models.energy_model import EnergyModel
from ebt_policy.training.task import TASKS

NONE = ("", "null", "~")  # as hydra reads them


def choose_budget(train: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the section ``train`` with the one budget that the command line names.

    ``train.steps=N`` alone unsets the default minutes, and ``train.minutes=N`` default steps.
    """
    values = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    chosen = {name for name in ("steps", "minutes") if values.get(f"train.{name}", "") not in NONE}
    if len(chosen) != 1:
        return train
    return train | {name: None for name in {"steps", "minutes"} - chosen}


def drop_unused_sections(config: dict[Any, Any], overridden: Sequence[str] = ()) -> dict[str, Any]:
    """Return a composed configuration without the sections that its model and task do not use.

    Args:
        overridden: the overrides of the command line.

    Raises:
        ConfigError: such a section was asked for.
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
