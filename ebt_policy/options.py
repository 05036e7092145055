"""Configuration becomes arguments: names and types are checked where it enters the program."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what to change."""


def options(call: Callable[..., T], given: dict[str, Any], where: str) -> T:
    """Call a class or function with options from configuration, checked against its signature.

    Args:
        call: with annotated parameters; `functools.partial` hides those that are no options.
        given: name -> value.
        where: the section that the options came from, for the message.

    Raises:
        ConfigError: naming options that are unknown, missing or of another type.
    """
    known = signature(call, eval_str=True).parameters
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(
            f"{where} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    absent = [n for n, p in known.items() if p.default is Parameter.empty and n not in given]
    if absent:
        raise ConfigError(f"{where} needs the option {', '.join(absent)}.")
    for name, value in given.items():
        if not _is_a(value, known[name].annotation):
            raise ConfigError(
                f"{where}: {name} must be {_name(known[name].annotation)}, got {value!r}."
            )
    return call(**given)


def _is_a(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or origin is Literal:  # whoever takes a literal says best what is allowed
        return True
    if origin in (UnionType, Union):  # the second with a literal in it
        return any(_is_a(value, one) for one in inner)
    if origin is tuple:  # YAML has lists
        fits = isinstance(value, list | tuple) and len(value) == len(inner)
        return fits and all(map(_is_a, value, inner))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else origin or kind)


def _name(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) in (UnionType, Union):
        return " or ".join(map(_name, inner))
    if get_origin(kind) is Literal:
        return ", ".join(map(str, inner))
    if get_origin(kind) is tuple:
        return f"[{', '.join(map(_name, inner))}]"
    return {type(None): "null", dict: "a section"}.get(get_origin(kind) or kind) or kind.__name__
