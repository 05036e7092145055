"""The folder of an evaluation's results, when none is given."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.io.output import numbered


def results_folder(checkpoints: Sequence[str], suite: str | None, command: str) -> Path:
    """Return a folder in ``results/`` that has no results of another command.

    It is named after the runs, how they predict, and the suite; ``-2``, ``-3``, ... are appended
    if necessary. The results of the same command are completed, for example after an interruption.

    Args:
        checkpoints: such as ``runs/a@steps=2``.
        suite: name of the suite, if one is evaluated.
        command: as the user typed it.
    """
    names = []
    for text in checkpoints:
        path, changes = parse_checkpoint(text)
        options = [f"{key.removeprefix('num_')}{value}" for key, value in changes.items()]
        names.append("-".join([path.resolve().name, *options]))
    name = "-vs-".join(dict.fromkeys(names))
    name = re.sub(r"[*?\[\]]+", "all", f"{suite}-{name}" if suite else name)[:200]
    stored_command = json.dumps(command)
    return next(
        path
        for path in numbered(Path("results") / name)
        if not (path / "summary.json").is_file()
        or stored_command in (path / "summary.json").read_text("utf-8")
    )
