"""Default output folder of an evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ebt_policy.evaluation.entries import parse_checkpoint, run_name
from ebt_policy.io.output import numbered


def results_folder(checkpoints: Sequence[str], suite: str | None, command: str) -> Path:
    """Return a folder in ``results/`` that has no results of another command.

    Its name consists of the runs, their inference options and the suite; ``-2``, ``-3``, ... is
    appended if necessary. The same command gets the same folder, so that it can resume.

    Args:
        checkpoints: checkpoint arguments such as ``runs/a@steps=2``.
        suite: name of the evaluated suite; None for none.
        command: the command as the user typed it.
    """
    names = []
    for text in checkpoints:
        _, changes = parse_checkpoint(text)
        options = [f"{key.removeprefix('num_')}{value}" for key, value in changes.items()]
        names.append("-".join([run_name(text), *options]))
    name = "-vs-".join(dict.fromkeys(names))
    name = re.sub(r"[*?\[\]]+", "all", f"{suite}-{name}" if suite else name)[:200]
    stored_command = json.dumps(command)
    return next(
        path
        for path in numbered(Path("results") / name)
        if not (path / "summary.json").is_file()
        or stored_command in (path / "summary.json").read_text("utf-8")
    )
