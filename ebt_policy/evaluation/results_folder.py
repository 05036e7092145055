"""Default output folder of an evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ebt_policy.evaluation.entries import base_name, checkpoint_options
from ebt_policy.io import hub
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
    name = "-vs-".join(dict.fromkeys(map(folder_name, checkpoints)))
    name = re.sub(r"[*?\[\]]+", "all", f"{suite}-{name}" if suite else name)[:200]
    stored_command = json.dumps(command)
    return next(
        path
        for path in numbered(Path("results") / name)
        if not (path / "summary.json").is_file()
        or stored_command in (path / "summary.json").read_text("utf-8")
    )


def folder_name(checkpoint: str) -> str:
    """Return a name without slashes for ``RUN[@name=value,...]``.

    >>> folder_name("runs/a@steps=2"), folder_name("hf://someone/arm@v1")
    ('a-steps2', 'someone-arm-v1')
    """
    changes = checkpoint_options(checkpoint)
    options = [f"{key.removeprefix('num_')}{value}" for key, value in changes.items()]
    name = base_name(checkpoint)
    if checkpoint.startswith(hub.PREFIX):
        name = re.sub("[/@]", "-", name)
    return "-".join([name, *options])
