"""The output of ``--help``: usage, groups, the chosen options with their meaning, and examples."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import yaml

from ebt_policy.cli.composition import CONFIGS, compose_with_choices, flatten, group_choices

LINE = re.compile(r"^(?P<indent>\s*)(?P<key>\w+):(?P<value>[^#]*)(?:#\s?(?P<comment>.*))?$")
CONTINUATION = re.compile(r"^\s*#\s{3,}(?P<comment>\S.*)$")
NAME_WIDTH = 30
GROUP_ORDER = ("task", "robot", "suite", "model", "objective", "size", "vision")
HELP_FLAGS = ("-h", "--help")


def print_usage(arguments: Sequence[str], usage: str, description: str | None) -> bool:
    """Print the help of a command without a configuration, if the arguments have ``--help``.

    Args:
        arguments: arguments of the command.
        usage: such as ``ebt-list [runs=FOLDER]``.
        description: the docstring of its module.

    Returns:
        Whether the help was printed.
    """
    if not any(flag in arguments for flag in HELP_FLAGS):
        return False
    sys.stdout.write(f"usage: {usage}\n\n{description}")
    return True


def help_text(
    script: str, config_name: str, summary: str, examples: Sequence[str], overrides: Sequence[str]
) -> str:
    """Return the help of a command.

    Args:
        script: name of the command.
        config_name: name of its file in ``configs/``.
        summary: one sentence about what it does.
        examples: example arguments of the command.
        overrides: chosen files of groups; their options are listed.

    Raises:
        ConfigError: if an override is unknown.
    """
    config, choices = compose_with_choices(config_name, overrides)
    comments = option_comments(config_name, choices)
    groups = [group for group in GROUP_ORDER if group in choices]
    options = {
        name: value
        for name, value in flatten(config).items()
        if name not in ("domain", *(f"{group}.name" for group in choices))
    }
    lines = [f"usage: {script} [OPTION=VALUE ...]", "", summary]
    if groups:
        lines += ["", "Groups (each one selects a file of options):"]
        for group in groups:
            names = ", ".join(group_choices(group))
            lines += _entry(f"{group}={choices[group] or 'null'}", f"one of {names}")
    for section, names in _sections(options).items():
        title = f"Options of {section}={choices[section]}" if choices.get(section) else "Options"
        heading = title if section in choices or not section else f"Options of {section}"
        lines += ["", f"{heading}:"]
        for name in names:
            lines += _entry(f"{name}={_to_yaml(options[name])}", comments.get(name, ""))
    lines += ["", "Examples:", *(f"  {script} {example}" for example in examples)]
    lines += ["", "--cfg prints the complete configuration as YAML and exits."]
    return "\n".join(lines)


def option_comments(config_name: str, choices: Mapping[str, str | None]) -> dict[str, str]:
    """Return the comments of options in the chosen configuration files, by option."""
    comments = _file_comments(f"{config_name}.yaml", "")
    for group, choice in choices.items():
        if choice is None or group.startswith("hydra/"):
            continue
        folder, _, package = group.partition("@")
        comments |= _file_comments(f"{folder}/{choice}.yaml", f"{package or folder}.")
    return comments


def _file_comments(path: str, prefix: str) -> dict[str, str]:
    """Return the comments of a file, and of the files beside it that its defaults name."""
    file = files(CONFIGS).joinpath(path)
    if not file.is_file():  # it is in the user's own folder
        return {}
    text = file.read_text("utf-8")
    if "# @package _global_" in text:
        prefix = ""
    folder = path.rpartition("/")[0]
    comments: dict[str, str] = {}
    for default in (yaml.safe_load(text) or {}).get("defaults", ()):
        if isinstance(default, str) and default != "_self_":
            comments |= _file_comments(f"{folder}/{default}.yaml", prefix)
    parents: list[tuple[int, str]] = []
    name = ""
    for line in text.splitlines():
        if match := LINE.match(line):
            indent = len(match["indent"])
            parents = [(i, key) for i, key in parents if i < indent]
            name = prefix + ".".join([*(key for _, key in parents), match["key"]])
            parents.append((indent, match["key"]))
            if match["comment"]:
                comments[name] = match["comment"]
        elif (match := CONTINUATION.match(line)) and name in comments:
            comments[name] += f" {match['comment']}"
    return comments


def _sections(options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of options by section; options without a section come first."""
    sections: dict[str, list[str]] = {"": []}
    for name in options:
        sections.setdefault(name.partition(".")[0] if "." in name else "", []).append(name)
    return sections


def _to_yaml(value: Any) -> str:
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return text.removesuffix("\n...").strip()


def _entry(name: str, comment: str) -> list[str]:
    """Return an option and its meaning in two columns, no wider than the terminal."""
    width = max(min(shutil.get_terminal_size().columns, 100), 60)
    wrapped = textwrap.wrap(comment, width - NAME_WIDTH - 4) or [""]
    if len(name) > NAME_WIDTH and comment:
        return [f"  {name}", *(f"{' ' * (NAME_WIDTH + 4)}{line}" for line in wrapped)]
    rest = [f"{' ' * (NAME_WIDTH + 4)}{line}" for line in wrapped[1:]]
    return [f"  {name:<{NAME_WIDTH}}  {wrapped[0]}".rstrip(), *rest]
