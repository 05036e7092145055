"""Command-line arguments, converted so that hydra reads them as the user meant them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from ebt_policy.plugins import take_modules
from ebt_policy.renamed_options import check_renamed_argument

RAW_ARGV: list[str] = []  # the arguments as the user typed them


def command_line(module: str) -> str:
    """Return the command that the user typed, which results store."""
    return shlex.join(["python", "-m", module, *RAW_ARGV])


# Options whose values are or may be paths. They are quoted, because hydra's grammar interprets
# brackets, commas, quotes and spaces, and allows no letters but English ones.
PATHS = (
    *("run_dir", "output", "checkpoint", "images", "corpus", "video_dataset", "model.teacher"),
    *("source", "destination"),
    *(
        "record",
        "lerobot",
        "recording",
        "rerun",
        "robot.driver.store",
        "robot.limits.workspace.model",
    ),
    *(f"task.{name}" for name in ("path", "images", "corpus", "videos", "tokenizer", "features")),
)
TEXTS = ("prompt", "units")


def hydra_arguments(arguments: Sequence[str], *repeated: str) -> list[str]:
    """Convert the arguments that a user typed into hydra's grammar.

    The module of each ``--module NAME`` is imported. Values of `PATHS` and `TEXTS` are quoted, and
    a leading ``~`` of a path becomes the home folder.

    Args:
        arguments: arguments as typed.
        repeated: options that may occur several times; they become one list.

    Raises:
        ConfigError: if a module cannot be imported, or an option has been renamed.
    """
    arguments = take_modules(arguments)
    for argument in arguments:
        check_renamed_argument(argument)
    sweep = not {"-m", "--multirun"}.isdisjoint(arguments)
    result: list[str] = []
    values: dict[str, list[str]] = {name: [] for name in repeated}
    for argument in arguments:
        added, equals, value = argument.partition("=")
        name = added.lstrip("+")
        is_text_option = equals and name in (*PATHS, *TEXTS, *repeated)
        if not is_text_option or _is_hydra_value(value, sweep):
            result.append(argument)
        elif name in repeated:
            values[name].append(quote(_expanded(name, value)))
        else:
            result.append(f"{added}={quote(_expanded(name, value))}")
    lists = [f"{name}=[{','.join(items)}]" for name, items in values.items() if items]
    return [*lists, *result]


def _is_hydra_value(value: str, sweep: bool) -> bool:
    """Return whether a value is in hydra's grammar: null, a list, quoted, or a sweep."""
    if value in ("", "null", "???"):
        return True
    if os.path.exists(value):
        return False
    listed = value.startswith("[") and value.endswith("]")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return listed or quoted or (sweep and "," in value)


def _expanded(name: str, value: str) -> str:
    return os.path.expanduser(value) if name in PATHS else value


def quote(value: str) -> str:
    """Return a value quoted for hydra, which unescapes backslashes only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
