"""Modules of the user's own, which the command line names and a file never does.

A checkpoint, a data set or a recording may come from anybody. What they name is looked up among
the names of this package and of the modules imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from ebt_policy.errors import ConfigError

_imported: set[str] = set()


def take_modules(arguments: Sequence[str]) -> list[str]:
    """Import what each ``--module NAME`` names, and return the other arguments.

    Raises:
        ConfigError: a module cannot be imported.
    """
    other_arguments, remaining = [], iter(arguments)
    for argument in remaining:
        flag, equals, name = argument.partition("=")
        if flag != "--module":
            other_arguments.append(argument)
            continue
        import_user_module(name if equals else next(remaining, ""))
    return other_arguments


def import_user_module(name: str) -> None:
    """Import a module of the user's and accept what checkpoints name of it.

    Raises:
        ConfigError: it cannot be imported.
    """
    if not name or name.startswith("-"):
        raise ConfigError("--module needs the name of a Python module, as in --module my_envs.")
    if "" not in sys.path and "." not in sys.path:  # console scripts lack the working directory
        sys.path.insert(0, "")
    try:
        import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--module {name} cannot be imported ({error}); give the name of a module in the "
            "working directory, or of an installed one."
        ) from error
    _imported.add(name)


def is_user_module(name: str) -> bool:
    """Whether the command line named this module."""
    return name in _imported
