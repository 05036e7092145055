"""Logging of metrics to a JSONL file, and to a tracker if there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ebt_policy.errors import OutputError
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.training.trackers import OFF, start_tracker


class MetricLog:
    """A log that appends one JSON object per line to ``log.jsonl``.

    Args:
        run_dir: folder of the file.
        tracker: ``off``, or one of `TRACKERS`.
        config: configuration that the tracker stores.
        resume_step: step from which the run resumes, or None. Lines of later steps are dropped,
            because the resumed run writes them again.
    """

    def __init__(
        self, run_dir: Path, *, tracker: str, config: dict[str, Any], resume_step: int | None
    ) -> None:
        self._tracker = None
        if tracker != OFF:
            self._tracker = start_tracker(tracker, run_dir, config, resume_step)
        path = self._path = run_dir / "log.jsonl"
        if resume_step is not None and path.exists():
            _drop_after(path, resume_step)
        self._file = path.open("a" if resume_step is not None else "w", buffering=1)

    def write(self, **values: Any) -> None:
        try:
            self._file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written ({error.strerror or error}); free space, then "
                "run the same command with resume=true to resume."
            ) from error
        if self._tracker is not None:
            self._tracker.log(values, step=values.get("step"))

    def close(self) -> None:
        self._file.close()
        if self._tracker is not None:
            self._tracker.finish()


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
