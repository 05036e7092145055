"""Models that ship with the package: ``checkpoint=pretrained:NAME``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ebt_policy.errors import ConfigError

PREFIX = "pretrained:"


def pretrained_names() -> list[str]:
    """Return the names of the models that ship with the package."""
    folder = Path(str(files("ebt_policy").joinpath("pretrained")))
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def resolve_pretrained(path: str | Path) -> Path:
    """Return the folder of ``pretrained:NAME``; return any other path unchanged.

    Raises:
        ConfigError: if no model of this name ships with the package.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    name = str(path).removeprefix(PREFIX)
    if name not in pretrained_names():
        raise ConfigError(
            f"{path} is unknown; there are {', '.join(PREFIX + n for n in pretrained_names())}."
        )
    return Path(str(files("ebt_policy").joinpath("pretrained", name)))
