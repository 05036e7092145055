"""Import of the user's own modules, which only the command line can name.

A checkpoint, a data set or a recording may come from anybody, so it never causes an import. The
names in it are looked up among the names of this package and of the modules imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from ebt_policy.errors import ConfigError

_imported: set[str] = set()


def take_modules(arguments: Sequence[str]) -> list[str]:
    """Import the module of each ``--module NAME``, and return the other arguments.

    Raises:
        ConfigError: if a module cannot be imported.
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
    """Import a module of the user, and allow checkpoints to refer to it.

    Raises:
        ConfigError: if it cannot be imported.
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
            "working directory, or of an installed module."
        ) from error
    _imported.add(name)


def is_user_module(name: str) -> bool:
    """Return whether the command line named this module."""
    return name in _imported
