"""The command line: what a user typed, as arguments that hydra reads as it was meant."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ebt_policy.cli.reporting import report_errors
from ebt_policy.plugins import take_modules
from ebt_policy.renamed_options import check_renamed_argument

RAW_ARGV: list[str] = []  # the arguments as the user typed them


def run_entry(hydra_main: Callable[[], Any], *repeated: str) -> None:
    """Run a hydra entry with the arguments that the user typed.

    Args:
        hydra_main: decorated by `hydra.main`.
        repeated: options that may occur several times; they become one list.
    """
    RAW_ARGV[:] = sys.argv[1:]
    with report_errors():
        sys.argv[1:] = hydra_arguments(RAW_ARGV, *repeated)
    hydra_main()


def command_line(module: str) -> str:
    """Return the command that the user typed, for results to say how they were made."""
    return " ".join([f"python -m {module}", *RAW_ARGV])


# Options whose values are paths, or names where a path may stand: hydra's grammar reads brackets,
# commas, quotes and spaces, and has no letters but English ones.
PATHS = (
    *("run_dir", "output", "checkpoint", "images", "corpus", "video_dataset"),
    *("bag", "record", "recording", "rerun", "robot.driver.store", "robot.limits.workspace.model"),
    *(f"task.{name}" for name in ("path", "images", "corpus", "videos", "tokenizer", "features")),
)
TEXTS = ("prompt",)


def hydra_arguments(arguments: Sequence[str], *repeated: str) -> list[str]:
    """Turn what a user typed into arguments that hydra reads as it was meant.

    ``--module NAME`` is imported, values of `PATHS` and `TEXTS` are quoted, and a leading ``~`` of
    a path becomes the home folder.

    Args:
        repeated: options that may occur several times; they become one list.

    Raises:
        ConfigError: a module cannot be imported, or an option has a new name.
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
    """Whether a value is written in hydra's grammar: null, a list, quoted, or a sweep."""
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
    """A value as hydra takes it whatever it holds: backslashes count twice before a quote alone."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
