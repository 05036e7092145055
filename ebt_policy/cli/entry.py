"""A command of the package: its arguments, its help, its errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ebt_policy.cli.arguments import RAW_ARGV, hydra_arguments
from ebt_policy.cli.composition import compose_config
from ebt_policy.cli.help import help_text
from ebt_policy.cli.reporting import report_errors
from ebt_policy.errors import ConfigError

HELP_FLAGS = {"-h", "--help"}


@dataclass(frozen=True)
class Entry:
    """A command whose options are a configuration in ``configs/``.

    Attributes:
        script: name of the console script.
        config_name: of the configuration file.
        summary: what the command does, in a sentence.
        examples: arguments, for the help.
        run: called with the resolved configuration and the overrides of the command line.
        help_choices: groups without a default, as the help shows them.
        repeated: options that may occur several times; they become one list.
        sweep: a function decorated by `hydra.main`, for hydra's own flags such as ``--multirun``.
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

    Errors that a user can fix are printed as one sentence and exit with 2.
    """
    RAW_ARGV[:] = sys.argv[1:]
    with report_errors():
        asks_for_help = not HELP_FLAGS.isdisjoint(RAW_ARGV)
        typed = [argument for argument in RAW_ARGV if argument not in HELP_FLAGS]
        arguments = hydra_arguments(typed, *entry.repeated)
        flags = [argument for argument in arguments if argument.startswith("-")]
        if asks_for_help:
            sys.stdout.write(_help(entry, arguments) + "\n")
            return
        if not flags:
            entry.run(compose_config(entry.config_name, arguments), arguments)
            return
        if entry.sweep is None:
            raise ConfigError(f"unknown flag {flags[0]}; options are NAME=VALUE, see --help.")
        sys.argv[1:] = arguments
    entry.sweep()


def _help(entry: Entry, arguments: Sequence[str]) -> str:
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    given_groups = {override.partition("=")[0] for override in overrides}
    overrides += [c for c in entry.help_choices if c.partition("=")[0] not in given_groups]
    return help_text(entry.script, entry.config_name, entry.summary, entry.examples, overrides)
