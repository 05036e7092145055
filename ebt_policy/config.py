"""Configuration becomes arguments: names and types are checked where it enters the program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import is_dataclass
from inspect import Parameter, signature
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ebt_policy.errors import ConfigError
from ebt_policy.renamed_options import renamed_to

T = TypeVar("T")
# For options that infinity means something to; of all others it is refused, as NaN always is.
FloatOrInfinity = Annotated[float, "infinity"]


def options(call: Callable[..., T], given: dict[str, Any], where: str) -> T:
    """Call a class or function with options from configuration, checked against its signature.

    Args:
        call, given, where: as in `check_options`.

    Raises:
        ConfigError: naming options that are unknown, missing, of another type, or refused by
            `call`.
    """
    check_options(call, given, where)
    try:
        return call(**given)
    except ConfigError:
        raise
    except ValueError as error:  # an option's value that the constructor refuses
        raise ConfigError(str(error)) from error


def check_options(call: Callable[..., Any], given: dict[str, Any], where: str) -> None:
    """Check options from configuration against the signature of a class or function.

    Args:
        call: with annotated parameters; `functools.partial` hides those that are no options.
        given: name -> value.
        where: the section that the options came from, for the message.

    Raises:
        ConfigError: naming options that are unknown, missing or of another type.
    """
    known = _parameters(call)
    if unknown := sorted(set(given) - set(known)):
        if new := renamed_to(_section(where), unknown[0]):
            raise ConfigError(f"{where}: {unknown[0]} was renamed: use {new}.")
        raise ConfigError(
            f"{where} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    absent = [n for n, p in known.items() if p.default is Parameter.empty and n not in given]
    if absent:
        raise ConfigError(f"{where} needs the option {', '.join(absent)}.")
    for name, value in given.items():
        if not _is_a(value, known[name].annotation):
            no_number = isinstance(value, float) and not math.isfinite(value)
            wanted = "a finite number" if no_number else _name(known[name].annotation)
            raise ConfigError(f"{where}: {name} must be {wanted}, got {value!r}.")


def _section(where: str) -> str:
    """Return the section that a message speaks of: ``objective`` of ``objective=flow``."""
    return "model.inference" if where.startswith("inference of ") else where.partition("=")[0]


def _parameters(call: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a callable with evaluated annotations, by name."""
    known = signature(call, eval_str=not is_dataclass(call)).parameters
    if not is_dataclass(call):
        return dict(known)
    # Inherited fields are annotated in the words of another module.
    kinds = get_type_hints(call, include_extras=True)
    return {name: option.replace(annotation=kinds[name]) for name, option in known.items()}


def _is_a(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or origin is Literal:  # whoever takes a literal says best what is allowed
        return True
    if origin in (UnionType, Union):  # the second with a literal in it
        return any(_is_a(value, each) for each in inner)
    if origin is Annotated:
        return _is_a(value, inner[0]) or (isinstance(value, float) and math.isinf(value))
    if origin is list:
        return isinstance(value, list | tuple) and all(_is_a(item, *inner) for item in value)
    if origin is tuple:  # YAML has lists
        fits = isinstance(value, list | tuple) and len(value) == len(inner)
        return fits and all(map(_is_a, value, inner))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:  # a finite number: NaN passes every check of a range
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, origin or kind)


def _name(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) in (UnionType, Union):
        return " or ".join(map(_name, inner))
    if get_origin(kind) is Literal:
        return ", ".join(map(str, inner))
    if get_origin(kind) is Annotated:
        return "a number or .inf"
    if get_origin(kind) is tuple:
        return f"[{', '.join(map(_name, inner))}]"
    if get_origin(kind) is list:
        return f"a list of {_name(inner[0])}"
    known = {type(None): "null", dict: "a section"}
    return known.get(get_origin(kind) or kind) or kind.__name__
