"""Options that have a new name: for the error that says so, and to read old checkpoints.

The table is also in CHANGELOG.md. Entries stay for one release.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebt_policy.errors import ConfigError

# (section as the user types it, old option) -> new option.
RENAMED_OPTIONS: dict[tuple[str, str], str] = {
    ("task", "max_prefix"): "max_prefix_len",
    ("shape", "max_prefix"): "max_prefix_len",  # of a policy's checkpoint
    ("train", "rollout_every"): "eval_every",
}

# (group as the user types it, old choice) -> new choice.
RENAMED_CHOICES: dict[tuple[str, str], str] = {
    ("objective", "corrupted"): "s1_corrupted",
}


def check_renamed_argument(argument: str) -> None:
    """Refuse an override of the command line that uses an old name.

    Args:
        argument: such as ``objective.fade=0.2``, ``+task.max_prefix=4`` or ``objective=corrupted``.

    Raises:
        ConfigError: naming the new option.
    """
    option, equals, value = argument.partition("=")
    if not equals:
        return
    option = option.lstrip("+~")
    section, _, name = option.rpartition(".")
    if new := RENAMED_OPTIONS.get((section, name)):
        raise ConfigError(f"{option} was renamed: use {section}.{new}={value}")
    for choice in value.split(","):
        if new := RENAMED_CHOICES.get((option, choice)):
            raise ConfigError(f"{option}={choice} was renamed: use {option}={new}")


def renamed_to(section: str, name: str) -> str | None:
    """Return the new name of an option of a section, or None if it has no new name."""
    return RENAMED_OPTIONS.get((section, name))


def with_new_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with the new names of its options."""
    config = dict(config)
    for (path, old), new in RENAMED_OPTIONS.items():
        _rename(config, path.split("."), old, new)
    return config


def _rename(config: dict[str, Any], path: list[str], old: str, new: str) -> None:
    """Rename an option of the section at a path, in copies of the sections on the way."""
    for name in path:
        if not isinstance(config.get(name), dict):
            return
        config[name] = dict(config[name])
        config = config[name]
    if old in config:
        config[new] = config.pop(old)
