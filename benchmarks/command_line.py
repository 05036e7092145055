"""Options of the benchmarks' commands, written ``name=value``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

BOOLEANS = {"true": True, "false": False}
TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def parse_options(arguments: Sequence[str] | None = None, **defaults: Any) -> SimpleNamespace:
    """Return the options of a command line, in the types of their defaults.

    Args:
        arguments: ``name=value`` each; None for the arguments of this process.
        defaults: default value of each option. A tuple holds the allowed values of an option, the
            default first.

    Raises:
        SystemExit: an option is unknown, or its value has another type or is not allowed; or with
            ``--help``, after the options were printed.
    """
    values = {k: v[0] if isinstance(v, tuple) else v for k, v in defaults.items()}
    typed = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(typed):
        module = sys.modules["__main__"].__doc__ or ""
        options = "".join(f"  {name}={value}\n" for name, value in values.items())
        print(f"{module.strip()}\n\nOptions and their defaults:\n{options}", end="")
        sys.exit(0)
    for argument in typed:
        name, equals, text = argument.partition("=")
        if not equals or name not in defaults:
            sys.exit(f"error: unknown option {argument!r}; available: {', '.join(defaults)}.")
        values[name] = _parse_value(name, text, defaults[name])
    return SimpleNamespace(**values)


def _parse_value(name: str, text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        if text not in default:
            sys.exit(f"error: {name} must be one of {', '.join(default)}, got {text!r}.")
        return text
    try:
        return BOOLEANS[text] if isinstance(default, bool) else type(default)(text)
    except (ValueError, KeyError):
        expected = TYPE_NAMES[type(default)]
        sys.exit(f"error: {name} must be {expected}, got {text!r}.")


def command_line(module: str) -> str:
    """Return the command line of this process, to store it with the results."""
    return " ".join([f"python -m benchmarks.{module}", *sys.argv[1:]])
