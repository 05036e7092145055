"""Logging of metrics to a JSONL file, and to Weights & Biases if enabled."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from ebt_policy.errors import ConfigError, OutputError
from ebt_policy.io.atomic_write import atomic_write

MODES = ("off", "online", "offline")


class MetricLog:
    """A log that appends one JSON object per line to ``log.jsonl``.

    Args:
        run_dir: folder of the file.
        wandb: ``off``, ``online`` or ``offline``.
        config: configuration that is stored with the Weights & Biases run.
        resume_step: step from which the run resumes, or None. Lines of later steps are dropped,
            because the resumed run writes them again.
    """

    def __init__(
        self, run_dir: Path, *, wandb: str, config: dict[str, Any], resume_step: int | None
    ) -> None:
        path = self._path = run_dir / "log.jsonl"
        if resume_step is not None and path.exists():
            _drop_after(path, resume_step)
        self._file = path.open("a" if resume_step is not None else "w", buffering=1)
        self._run = None
        if wandb != "off":
            self._run = _start_wandb(run_dir, wandb, config, resume_step is not None)

    def write(self, **values: Any) -> None:
        try:
            self._file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written ({error.strerror or error}); free space, then "
                "run the same command with resume=true to resume."
            ) from error
        if self._run is not None:
            self._run.log(values, step=values.get("step"))

    def close(self) -> None:
        self._file.close()
        if self._run is not None:
            self._run.finish()


def check_mode(wandb: str) -> None:
    """Raise a `ConfigError` if the mode is unknown or the package wandb is missing."""
    if wandb not in MODES:
        raise ConfigError(f"wandb must be one of {', '.join(MODES)}, got {wandb}.")
    if wandb != "off" and find_spec("wandb") is None:
        raise ConfigError(
            f"wandb={wandb} needs the package wandb: pip install 'ebt_policy[wandb]'."
        )


def _start_wandb(run_dir: Path, mode: Any, config: dict[str, Any], resumed: bool) -> Any:
    wandb: Any = import_module("wandb")  # optional, and slow to import

    # A resumed run keeps its id. A new run gets a new one, even if its folder has the same name.
    id_file = run_dir / "wandb_id"
    if not (resumed and id_file.is_file()):
        id_file.write_text(uuid4().hex[:12])
    try:
        return wandb.init(
            project="ebt_policy", dir=run_dir, name=run_dir.name, id=id_file.read_text(), mode=mode,
            config=config, resume="allow",
        )  # fmt: skip
    except wandb.errors.Error as error:
        raise ConfigError(
            f"wandb={mode} does not work ({error}); log in with `wandb login`, or use "
            "wandb=offline or wandb=off."
        ) from error


def _drop_after(path: Path, step: int) -> None:
    kept_lines = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # incomplete, because the process was killed
            continue
        if values.get("step", 0) <= step:
            kept_lines.append(line)
    atomic_write(path, "".join(line + "\n" for line in kept_lines))
