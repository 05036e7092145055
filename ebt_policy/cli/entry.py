"""Commands of the package: their arguments, help and errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ebt_policy.cli.arguments import RAW_ARGV, hydra_arguments, quote
from ebt_policy.cli.composition import compose_config
from ebt_policy.cli.help import HELP_FLAGS, help_text
from ebt_policy.cli.reporting import report_errors
from ebt_policy.errors import ConfigError

MULTIRUN_FLAGS = ("-m", "--multirun")
CFG_FLAGS = ("-c", "--cfg")


@dataclass(frozen=True)
class Entry:
    """A command whose options are a configuration in ``configs/``.

    Attributes:
        script: name of the console script.
        config_name: name of the configuration file.
        summary: one sentence about what the command does.
        examples: example arguments, for the help.
        run: called with the resolved configuration and the overrides of the command line.
        help_choices: overrides that the help uses for groups without a default.
        repeated: options that may occur several times; they become one list.
        sweep: function decorated by `hydra.main`, for ``--multirun``; None without support for it.
    """

    script: str
    config_name: str
    summary: str
    examples: Sequence[str]
    run: Callable[[dict[str, Any], list[str]], None]
    help_choices: Sequence[str] = ()
    repeated: Sequence[str] = ()
    sweep: Callable[[], Any] | None = None


def run_entry(entry: Entry) -> None:
    """Run a command with the arguments that the user typed.

    ``--help`` prints the options, and ``--cfg`` prints the composed configuration. An error that a
    user can fix is printed as one sentence, and the exit status is 2.
    """
    RAW_ARGV[:] = sys.argv[1:]
    with report_errors():
        typed, flags = _split_flags(RAW_ARGV)
        arguments = [*flags.pop("--config-dir", ()), *hydra_arguments(typed, *entry.repeated)]
        hydra_flags = [argument for argument in arguments if argument.startswith("-")]
        if "--help" in flags:
            sys.stdout.write(_help(entry, arguments) + "\n")
            return
        if "--cfg" in flags:
            sys.stdout.write(OmegaConf.to_yaml(compose_config(entry.config_name, arguments)))
            return
        if not hydra_flags:
            entry.run(compose_config(entry.config_name, arguments), arguments)
            return
        unknown = [flag for flag in hydra_flags if flag not in MULTIRUN_FLAGS]
        if unknown or entry.sweep is None:
            flag = (unknown or hydra_flags)[0]
            raise ConfigError(f"unknown flag {flag}; options are NAME=VALUE, see --help.")
        sys.argv[1:] = arguments
    entry.sweep()


def _split_flags(arguments: Sequence[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Separate the flags ``--help``, ``--cfg`` and ``--config-dir`` from the other arguments.

    Returns:
        The other arguments, and the overrides that each given flag adds.
    """
    others: list[str] = []
    flags: dict[str, tuple[str, ...]] = {}
    remaining, previous = iter(arguments), ""
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if argument in HELP_FLAGS:
            flags["--help"] = ()
        elif argument in CFG_FLAGS:
            flags["--cfg"] = ()
        elif name == "--config-dir":
            flags[name] = (_search_path(value if equals else next(remaining, "")),)
        elif not (argument == "job" and previous in CFG_FLAGS):  # hydra's ``--cfg job``
            others.append(argument)
        previous = argument
    return others, flags


def _search_path(folder: str) -> str:
    """Return the override that adds a user's folder to hydra's search path."""
    if not folder or not Path(folder).is_dir():
        raise ConfigError(f"--config-dir needs a folder of configurations, got {folder!r}.")
    return f"hydra.searchpath=[{quote('file://' + str(Path(folder).resolve()))}]"


def _help(entry: Entry, arguments: Sequence[str]) -> str:
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    given_groups = {override.partition("=")[0] for override in overrides}
    overrides += [c for c in entry.help_choices if c.partition("=")[0] not in given_groups]
    return help_text(entry.script, entry.config_name, entry.summary, entry.examples, overrides)
