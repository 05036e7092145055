"""Conversion of configuration sections to arguments, with checks of names and types."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from inspect import Parameter, signature
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ebt_policy.errors import ConfigError
from ebt_policy.renamed_options import renamed_to

T = TypeVar("T")
# For options that may be infinite. All other numbers must be finite, and none may be NaN.
FloatOrInfinity = Annotated[float, "infinity"]


def options(call: Callable[..., T], config: dict[str, Any], section: str) -> T:
    """Call a class or function with options from configuration, checked against its signature.

    Args:
        call, config, section: as in `check_options`.

    Raises:
        ConfigError: if options are unknown, missing or of another type, or ``call`` rejects a
            value; the message names them.
    """
    check_options(call, config, section)
    try:
        return call(**config)
    except ConfigError:
        raise
    except ValueError as error:  # the constructor rejects the value of an option
        raise ConfigError(str(error)) from error


def check_options(call: Callable[..., Any], config: dict[str, Any], section: str) -> None:
    """Check options from configuration against the signature of a class or function.

    Args:
        call: class or function with annotated parameters; `functools.partial` hides those that are
            not options.
        config: values by option name.
        section: section of the options, for the message.

    Raises:
        ConfigError: if options are unknown, missing or of another type; the message names them.
    """
    parameters = _parameters(call)
    if unknown := sorted(set(config) - set(parameters)):
        if new_name := renamed_to(_section(section), unknown[0]):
            raise ConfigError(f"{section}: {unknown[0]} was renamed: use {new_name}.")
        raise ConfigError(
            f"{section} has no option {', '.join(unknown)}; it has {', '.join(sorted(parameters))}."
        )
    absent = [n for n, p in parameters.items() if p.default is Parameter.empty and n not in config]
    if absent:
        raise ConfigError(f"{section} needs the option {', '.join(absent)}.")
    for name, value in config.items():
        if not _is_a(value, parameters[name].annotation):
            no_number = isinstance(value, float) and not math.isfinite(value)
            expected = "a finite number" if no_number else _name(parameters[name].annotation)
            label = _section(section)
            option = name if " " in label else f"{label}.{name}"
            raise ConfigError(f"{option} must be {expected}, got {value!r}.")


def _section(label: str) -> str:
    """Return the section of a label, such as ``objective`` for ``objective=flow``."""
    return "model.inference" if label.startswith("inference of ") else label.partition("=")[0]


def _parameters(call: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a callable with evaluated annotations, by name."""
    parameters = signature(call, eval_str=not is_dataclass(call)).parameters
    if not is_dataclass(call):
        return dict(parameters)
    # Annotations of inherited fields refer to names of another module.
    type_hints = get_type_hints(call, include_extras=True)
    return {
        name: option.replace(annotation=type_hints[name]) for name, option in parameters.items()
    }


def _is_a(value: Any, annotation: Any) -> bool:
    origin, type_args = get_origin(annotation), get_args(annotation)
    if annotation in (Any, Parameter.empty):
        return True
    if origin is Literal:  # the called function lists the allowed values in its own error
        return True
    if origin in (UnionType, Union):  # Union if a member is a literal
        return any(_is_a(value, member) for member in type_args)
    if origin is Annotated:
        return _is_a(value, type_args[0]) or (isinstance(value, float) and math.isinf(value))
    if origin is Sequence:  # the called function rejects NaN in its own error
        return isinstance(value, list | tuple) and all(
            isinstance(item, float) or _is_a(item, *type_args) for item in value
        )
    if origin is list:
        return isinstance(value, list | tuple) and all(_is_a(item, *type_args) for item in value)
    if origin is tuple:  # YAML has only lists
        same_length = isinstance(value, list | tuple) and len(value) == len(type_args)
        return same_length and all(map(_is_a, value, type_args))
    if isinstance(value, bool):
        return annotation is bool
    if annotation is float:  # a finite number, because NaN would pass range checks
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, origin or annotation)


def _name(annotation: Any) -> str:
    type_args = get_args(annotation)
    if get_origin(annotation) in (UnionType, Union):
        return " or ".join(map(_name, type_args))
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, type_args))
    if get_origin(annotation) is Annotated:
        return "a number or .inf"
    if get_origin(annotation) is tuple:
        return f"[{', '.join(map(_name, type_args))}]"
    if get_origin(annotation) in (list, Sequence):
        return f"a list of {_name(type_args[0])}"
    names = {
        type(None): "null", dict: "a section", float: "a number", int: "an integer",
        str: "text", bool: "true or false",
    }  # fmt: skip
    return names.get(get_origin(annotation) or annotation) or annotation.__name__
