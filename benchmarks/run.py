"""Run a study: ``python -m benchmarks.run study=NAME [part=PART] [options]``.

The command trains the missing runs, evaluates the entries and stores one JSON file for each part in
docs/results. Run the same command again to resume. ``dry_run=true`` prints the commands and the
entries instead. Without arguments, the command lists all studies. Options of every study: part,
seeds, parallel, folder, overrides, docs, dry_run (see `benchmarks.study.COMMON_OPTIONS`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from benchmarks.command_line import command_line, parse_options
from benchmarks.results import store_json
from benchmarks.studies import STUDIES
from benchmarks.study import Study, StudyContext, all_entries
from benchmarks.training import compose_products, record, train_all
from ebt_policy.evaluation.terminal import print_markdown


def parse_study(arguments: Sequence[str]) -> tuple[Study, SimpleNamespace]:
    """Return the study that the arguments name, and its options.

    Raises:
        SystemExit: the study or an option is unknown, or a value is not allowed.
    """
    names = [text.removeprefix("study=") for text in arguments if text.startswith("study=")]
    if len(names) != 1:
        sys.exit(f"error: exactly one option study=NAME is required.\n{study_list()}")
    if (study := STUDIES.get(names[0])) is None:
        sys.exit(f"error: study={names[0]} is unknown.\n{study_list()}")
    option_arguments = [text for text in arguments if not text.startswith("study=")]
    options = parse_options(option_arguments, **study.defaults)
    options.folder = options.folder.format(**vars(options))
    return study, options


def study_list() -> str:
    """Return one line for each study: its name, its summary, and its own options."""
    width = max(map(len, STUDIES))
    lines = []
    for name, study in STUDIES.items():
        option_names = [*(["part"] if len(study.parts) > 1 else []), *study.options]
        note = f" [{' '.join(f'{option}=' for option in option_names)}]" if option_names else ""
        lines.append(f"  {name:{width}}  {study.summary}{note}")
    return "\n".join(["studies:", *lines])


def plan(study: Study, options: SimpleNamespace) -> str:
    """Return the commands, entries and result files of a study, without running it."""
    lines = []
    for recording in study.recordings(options):
        lines.append(shlex.join(["python", *recording.command(Path(options.folder))[1:]]))
    for command in [command for stage in study.training_commands(options) for command in stage]:
        lines.append(shlex.join(["python", "-m", "ebt_policy.train", *command.arguments]))
    for name, members in study.used_products(options).items():
        lines.append(f"compose {name} of {', '.join(members)}")
    for part in study.selected_parts(options).values():
        context = StudyContext(study, part, options, "")
        lines += [f"evaluate {context.checkpoint(entry)}" for entry in all_entries(part)]
        if part.result:
            lines.append(f"store {context.results / context.result}.json")
    return "\n".join(lines)


def execute(study: Study, options: SimpleNamespace, command: str) -> None:
    """Train the missing runs, then measure, store and print the results.

    Raises:
        SystemExit: a package is missing, or a training run failed.
    """
    if missing := [name for name in study.packages if find_spec(name) is None]:
        sys.exit(f"error: this study needs another package: pip install {' '.join(missing)}.")
    for recording in study.recordings(options):
        record(recording, Path(options.folder))
    train_all(study.training_commands(options), options.parallel)
    compose_products(study.used_products(options), Path(options.folder), options.seeds)
    for part in study.selected_parts(options).values():
        context = StudyContext(study, part, options, command)
        context.output.mkdir(parents=True, exist_ok=True)
        result = part.measure(context)
        for step in part.follow_ups:
            step(context, result)
        if part.result:
            print(f"stored: {store_json(context.result, result, context.results)}", flush=True)
        if part.table:
            print_markdown(part.table(result), Console())


def main() -> None:
    if len(sys.argv) == 1:
        print(f"{__doc__}\n{study_list()}")
        return
    study, options = parse_study(sys.argv[1:])
    if options.dry_run:
        print(plan(study, options))
    else:
        execute(study, options, command_line("run"))


if __name__ == "__main__":
    main()
